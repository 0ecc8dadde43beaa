"""Searches for pruned networks and runs of sweeps: cells of a run are trials, and its map decides where to look."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from pruned_searches import pruned_spec, silent, study_in, sweep_of_trials

import regimes
from regimes.config.sweep import Sweep
from regimes.errors import UserError
from regimes.experiment.run import run
from regimes.experiment.store import Store
from regimes.hpo.pruned.pruned_search import search_pruned
from regimes.hpo.pruned.search_folder import open_cells
from regimes.hpo.search_options import SearchOptions


def test_a_cell_is_that_of_a_sweep_bit_for_bit(tmp_path: Path) -> None:
    spec = pruned_spec()
    search_pruned(spec, SearchOptions(tmp_path / "search"), silent)
    trial = next(each for each in study_in(tmp_path / "search").trials if each.params["density"] in (0.05, 0.2))
    sweep = sweep_of_trials(spec, [trial.params["learning_rate"]])
    numerics = Store(tmp_path / "search").run_info
    assert numerics is not None
    (tmp_path / "grid").mkdir()
    Store(tmp_path / "grid").write_json("run.json", numerics)  # the same engines
    run(sweep, tmp_path / "grid", workers=0)
    grid = regimes.open(tmp_path / "grid").isel(dense_seed=0, retrain_seed=0)
    at = {"epochs": trial.params["epochs"], "learning_rate": trial.params["learning_rate"]}
    assert float(grid.val_error.sel({**at, "density": trial.params["density"]})) == trial.values[0]
    shared = {path.name for path in (tmp_path / "search/records").glob("*/*.json")}
    assert shared & {path.name for path in (tmp_path / "grid/records").glob("*/*.json")}


def test_cells_of_a_run_are_finished_trials_at_no_cost(tmp_path: Path) -> None:
    spec = pruned_spec(trials=24)
    run(sweep_of_trials(spec, [0.03, 0.3]), tmp_path / "grid", workers=0)
    said: list[str] = []
    result = search_pruned(spec, SearchOptions(tmp_path / "search", map=tmp_path / "grid"), said.append)
    assert f"{tmp_path / 'grid'}: 8 cells are taken as finished trials" in said
    study = study_in(tmp_path / "search")
    adopted = [each for each in study.trials if each.user_attrs.get("regimes:adopted")]
    assert len(adopted) == 8
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 24
    grid = regimes.open(tmp_path / "grid").isel(dense_seed=0, retrain_seed=0)
    for trial in adopted:
        at = {"epochs": trial.params["epochs"], "learning_rate": trial.params["learning_rate"]}
        assert float(grid.val_error.sel({**at, "density": trial.params["density"]})) == trial.values[0]
    assert result["spending"]["adopted"] == 8
    again = search_pruned(spec, SearchOptions(tmp_path / "search", map=tmp_path / "grid"), silent)
    assert again["spending"]["adopted"] == 8
    assert len(study.trials) == len(study_in(tmp_path / "search").trials)


def test_a_run_with_another_recipe_gives_no_trials_and_the_reason(tmp_path: Path) -> None:
    spec = pruned_spec(trials=3)
    run(sweep_of_trials(spec, [0.03]), tmp_path / "grid", workers=0)
    other, said = pruned_spec(trials=3, retrain={"epochs": 3}), list[str]()
    search_pruned(other, SearchOptions(tmp_path / "search", map=tmp_path / "grid"), said.append)
    assert any("0 cells are taken as finished trials (retrain.epochs = 2, not 3)" in each for each in said)
    for number, (changes, reason) in enumerate(
        (
            ({"seed": 4}, "it has dense_seeds = 1, the search trains seed = 4"),
            ({"retrain_seeds": 3}, "retrain_seeds = 2, not 3"),
            ({"measure": {"metrics": ["error", "hessian_trace"]}}, "it does not measure hessian_trace"),
        )
    ):
        said.clear()
        folder = tmp_path / f"{number}"
        search_pruned(pruned_spec(trials=1, **changes), SearchOptions(folder, map=tmp_path / "grid"), said.append)
        assert any(reason in each for each in said), said


def test_another_search_or_a_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    spec = pruned_spec(trials=3)
    search_pruned(spec, SearchOptions(tmp_path / "search"), silent)
    with pytest.raises(UserError, match="holds a search with another space"):
        search_pruned(pruned_spec(trials=3, retrain={"epochs": 3}), SearchOptions(tmp_path / "search"), silent)
    run(sweep_of_trials(spec, [0.03]), tmp_path / "grid", workers=0)
    with pytest.raises(UserError, match="holds the run of a sweep; use another --out, and --map"):
        search_pruned(spec, SearchOptions(tmp_path / "grid"), silent)


def test_the_map_says_what_it_decides_and_the_first_trials_follow(tmp_path: Path) -> None:
    spec = pruned_spec(trials=12)
    run(sweep_of_trials(spec, [0.03, 0.1, 0.3]), tmp_path / "grid", workers=0)
    said: list[str] = []
    search_pruned(spec, SearchOptions(tmp_path / "search", map=tmp_path / "grid"), said.append)
    assert any("density 0.6: outside the range of the map" in each for each in said)
    chosen = [each for each in said if "it selects" in each]
    assert len(chosen) == 2
    settings = {(each.params["learning_rate"], each.params["density"]) for each in study_in(tmp_path / "search").trials}
    for line in chosen:
        density = float(line.split("density ")[1].split(":")[0])
        rate = float(line.split("learning_rate = ")[1].split(",")[0].split(" ")[0])
        assert (rate, density) in settings
    run(sweep_of_trials(spec, [0.03]), tmp_path / "other", workers=0)
    with pytest.raises(UserError, match=r"this search was started with .*grid; use another --out"):
        search_pruned(spec, SearchOptions(tmp_path / "search", map=tmp_path / "other"), silent)


def test_the_range_of_rho_is_the_maps_in_every_process(tmp_path: Path) -> None:
    space = {"sam_rho": {"low": 0.0, "high": 5.0}, "learning_rate": [0.1, 0.05]}
    spec = pruned_spec(space=space, trials=8, load={"density": [0.2]})
    raw = sweep_of_trials(spec, [0.1]).model_dump(exclude={"temperature", "points"})
    sweep = Sweep(**raw, temperature={"sam_rho": (0.0, 0.05, 0.1, 0.2)})
    run(sweep, tmp_path / "grid", workers=0)
    said: list[str] = []
    search_pruned(spec, SearchOptions(tmp_path / "search", map=tmp_path / "grid"), said.append)
    assert any("range 0 to" in each or "range 0.0" in each for each in said), said
    drawn = [each.params["sam_rho"] for each in study_in(tmp_path / "search").trials]
    assert max(drawn) <= 0.2
    cells, _ = open_cells(spec, tmp_path / "search", "cpu")  # as a worker does
    assert cells.spec.space["sam_rho"].ends[1] <= 0.2


def test_cells_of_the_map_are_in_the_folder_of_the_search(tmp_path: Path) -> None:
    """Also where all trials are such cells, which is said."""
    spec, said = pruned_spec(trials=4), list[str]()
    run(sweep_of_trials(spec, [0.03, 0.3]), tmp_path / "grid", workers=0)
    search_pruned(spec, SearchOptions(tmp_path / "search", map=tmp_path / "grid"), said.append)
    assert any("all are cells of the map, nothing is searched" in each for each in said)
    found = regimes.open(tmp_path / "search")
    assert int(found.val_error.notnull().sum()) == 8
    assert int((found.status == 1).sum()) == 8


def test_cells_of_a_map_over_batch_sizes_are_taken_too(tmp_path: Path) -> None:
    """Also that of the recipe's own batch size, whichever way its key was made."""
    space = {"learning_rate": [0.1], "batch_size": [16, 32]}
    spec = pruned_spec(space=space, trials=4, load={"density": [0.2]})
    raw = sweep_of_trials(spec, [0.1]).model_dump(exclude={"temperature", "points", "recipe"})
    for name, temperature in (("sizes", {"batch_size": (16, 32)}), ("rates", {"learning_rate": (0.1, 0.2)})):
        sweep = Sweep(**raw, recipe=spec.recipe, temperature=temperature)
        run(sweep, tmp_path / name, workers=0)
        said: list[str] = []
        search_pruned(spec, SearchOptions(tmp_path / f"of-{name}", map=tmp_path / name), said.append)
        count = {"sizes": 2, "rates": 1}[name]
        assert any(f"{count} cells are taken as finished trials" in each for each in said), said


def test_a_map_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    run(sweep_of_trials(pruned_spec(), [0.03]), tmp_path / "grid", workers=0)
    other = pruned_spec(trials=3, model={"name": "mlp", "widths": [16]})
    with pytest.raises(UserError, match="made with another"):
        search_pruned(other, SearchOptions(tmp_path / "search", map=tmp_path / "grid"), silent)
    assert not (tmp_path / "search/run.json").exists()
    with pytest.raises(UserError):
        search_pruned(other, SearchOptions(tmp_path / "search", map=tmp_path / "nowhere"), silent)
    assert not (tmp_path / "search/run.json").exists()
