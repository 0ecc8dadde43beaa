"""Searches for pruned networks: trials are cells of sweeps, nothing is trained twice, nothing that finished is lost."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from pruned_searches import pruned_spec, written
from searches import PROGRAM, call

import regimes
from regimes.config.hpo import Hpo
from regimes.config.sweep import Sweep
from regimes.config.sweep_file import resolve_sweep
from regimes.errors import UserError
from regimes.experiment.run import run
from regimes.experiment.store import Store
from regimes.hpo.optuna_study import open_storage
from regimes.hpo.pruned import cell_runner
from regimes.hpo.pruned import search_folder as pruned_module
from regimes.hpo.pruned.cell_runner import cell_of
from regimes.hpo.pruned.pruned_search import search_pruned
from regimes.hpo.pruned.search_folder import open_cells
from regimes.hpo.search_options import SearchOptions


def silent(text: str) -> None:
    """Say nothing."""


def study_in(folder: Path, name: str = "small") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(str(folder / "study.log")))


def sweep_of_trials(spec: Hpo, rates: list[float]) -> Sweep:
    """A sweep over settings that a search could have."""
    raw = {
        "name": "grid",
        "data": spec.data.model_dump(),
        "model": spec.model.model_dump(),
        "recipe": {"epochs": 4, "batch_size": 32, "last": 1},
        "retrain": {"epochs": 2},
        "temperature": {"learning_rate": rates, "epochs": [2, 4]},
        "load": {"density": [0.05, 0.2]},
    }
    return resolve_sweep(raw)


def test_a_setting_is_trained_once_and_pruned_to_every_density(tmp_path: Path) -> None:
    spec = pruned_spec()
    result = search_pruned(spec, SearchOptions(tmp_path), silent)
    trials = study_in(tmp_path).get_trials(states=(TrialState.COMPLETE,))
    assert len(trials) == 12
    settings = {(each.params["learning_rate"], each.params["epochs"]) for each in trials}
    assert len(settings) == 4
    assert result["spending"]["trainings"] == 4
    data = regimes.open(tmp_path)
    assert dict(data.sizes)["setting"] == 4
    for trial in trials:  # the value of a trial is the record's
        here = data.isel(setting=np.flatnonzero(data.learning_rate == trial.params["learning_rate"]))
        value = here.val_error.sel(density=trial.params["density"]).values.ravel()
        assert trial.values == [pytest.approx(float(value[0])), trial.params["density"]]
    costs = [each["cost"] for each in result["best"]]
    values = [each["value"] for each in result["best"]]
    assert costs == sorted(set(costs))
    assert values == sorted(set(values), reverse=True)
    assert all(len(each["test_errors"]) == 2 for each in result["best"])
    assert (tmp_path / "result.json").exists()


def test_a_cell_is_that_of_a_sweep_bit_for_bit(tmp_path: Path) -> None:
    spec = pruned_spec()
    search_pruned(spec, SearchOptions(tmp_path / "search"), silent)
    trial = study_in(tmp_path / "search").trials[0]
    sweep = sweep_of_trials(spec, [trial.params["learning_rate"]])
    numerics = Store(tmp_path / "search").run_info
    assert numerics is not None
    (tmp_path / "grid").mkdir()
    Store(tmp_path / "grid").write_json("run.json", numerics)  # the same engines
    run(sweep, tmp_path / "grid", workers=0)
    grid = regimes.open(tmp_path / "grid").isel(dense_seed=0, retrain_seed=0)
    at = {"epochs": trial.params["epochs"], "learning_rate": trial.params["learning_rate"]}
    if trial.params["density"] in grid.density:
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


def test_a_later_snapshot_of_a_training_continues_it(tmp_path: Path) -> None:
    spec = pruned_spec(space={"learning_rate": [0.1], "epochs": [2, 4]}, trials=6, load={"density": [0.2]})
    result = search_pruned(spec, SearchOptions(tmp_path), silent)
    assert result["spending"]["trainings"] == 1
    snapshots = {path.name for path in (tmp_path / "records").glob("*/*-e*.json")}
    seeds = {name.split("-")[0] for name in snapshots}
    assert len(seeds) == 1 + spec.final_seeds  # one training, with both snapshots; and the fresh ones of the best
    assert result["spending"]["seconds"] < result["spending"]["alone_seconds"]


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_interrupted_and_resumed_it_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    spec = pruned_spec(trials=6)
    whole = search_pruned(spec, SearchOptions(tmp_path / "whole"), silent)
    done, calls = cell_runner.run_fleet, itertools.count()

    def interrupted(*given: object) -> None:
        if next(calls) == cut:
            raise KeyboardInterrupt
        done(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(cell_runner, "run_fleet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search_pruned(spec, SearchOptions(tmp_path / "cut"), silent)
    monkeypatch.setattr(cell_runner, "run_fleet", done)
    resumed = search_pruned(spec, SearchOptions(tmp_path / "cut"), silent)
    key = [(each["params"], each["density"], each["value"], each["test_errors"]) for each in whole["best"]]
    assert [(each["params"], each["density"], each["value"], each["test_errors"]) for each in resumed["best"]] == key
    states = [each.state for each in study_in(tmp_path / "cut").trials]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.COMPLETE) == 6


def test_killed_with_two_workers_and_resumed_no_cell_is_trained_twice(tmp_path: Path) -> None:
    written(tmp_path)
    line = ["hpo", "small.toml", "--out", "out", "--trials", "36", "--json"]
    process = subprocess.Popen(
        [PROGRAM, *line, "--workers", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    records = tmp_path / "out/records"
    until = time.monotonic() + 120
    while len(list(records.glob("*/*.json"))) < 8 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in records.glob("*/*.json")}
    done = call(*line, "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    study = study_in(tmp_path / "out")
    assert not [each for each in study.trials if each.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) >= 36
    assert json.loads(done.stdout)["best"]


def test_a_diverged_network_is_pruned_of_a_single_value_and_failed_on_a_front(tmp_path: Path) -> None:
    space = {"learning_rate": [1e30], "epochs": [2, 4]}
    for densities, state in (([0.2], TrialState.PRUNED), ([0.2, 0.6], TrialState.FAIL)):
        folder = tmp_path / str(len(densities))
        spec = pruned_spec(space=space, trials=2, load={"density": densities}, recipe={"clip_norm": 0.0})
        with pytest.raises(UserError, match="no trial finished"):
            search_pruned(spec, SearchOptions(folder), silent)
        trials = study_in(folder).trials
        assert {each.state for each in trials} == {state}
        assert all(each.user_attrs["regimes:why"] == "diverged" for each in trials)


def test_parameters_macs_and_latency_as_the_cost_of_a_front(tmp_path: Path) -> None:
    data = {"name": "synthetic", "shape": [3, 8, 8], "train": 100, "test": 40}
    model = {"name": "preresnet", "depth": 8, "width": 8}
    load = {"density": [0.2, 0.6], "pruner": "channels-magnitude"}
    for against in ("parameters", "macs", "latency"):
        spec = pruned_spec(data=data, model=model, trials=2, final_seeds=1, load=load, study={"against": against})
        search_pruned(spec, SearchOptions(tmp_path / against), silent)
        small, large = sorted(study_in(tmp_path / against).trials, key=lambda each: each.params["density"])
        assert small.values[1] > 0
        if against != "latency":  # a timing
            assert small.values[1] < large.values[1]


def test_parameters_of_a_masked_network_are_those_that_are_not_zero(tmp_path: Path) -> None:
    spec = pruned_spec(trials=2, load={"density": [0.2, 0.6]}, study={"against": "parameters"}, final_seeds=1)
    search_pruned(spec, SearchOptions(tmp_path), silent)
    cells, _ = open_cells(spec, tmp_path, "cpu")
    for trial in study_in(tmp_path).trials:
        (copy,) = cells.copies(cells.stages(cell_of(trial.params, spec)))
        model = cells.context.model_with(cells.store.weights(copy.key))
        nonzero = sum(int((each != 0).sum()) for each in model.parameters())
        never = sum(int((each == 0).sum()) for name, each in model.named_parameters() if each.dim() < 2)
        assert trial.values[1] == nonzero + never


def test_another_search_or_a_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    spec = pruned_spec(trials=3)
    search_pruned(spec, SearchOptions(tmp_path / "search"), silent)
    with pytest.raises(UserError, match="holds a search with another space"):
        search_pruned(pruned_spec(trials=3, retrain={"epochs": 3}), SearchOptions(tmp_path / "search"), silent)
    run(sweep_of_trials(spec, [0.03]), tmp_path / "grid", workers=0)
    with pytest.raises(UserError, match="holds the run of a sweep; use another --out, and --map"):
        search_pruned(spec, SearchOptions(tmp_path / "grid"), silent)


def test_a_search_that_another_command_begins_at_once_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pruned_module.prepare

    def beaten(*given: Any, **how: Any) -> Any:
        """Prepare, while another command writes run.json with other engines."""
        prepared = real(*given, **how)
        numerics = {**dataclasses.asdict(prepared.spec.numerics), "engine": "stacked"}
        prepared.store.write_json("run.json", {"numerics": numerics, "lanes": {"train": 1, "retrain": 8}})
        return prepared

    monkeypatch.setattr(pruned_module, "prepare", beaten)
    spec = pruned_spec(trials=3)
    search_pruned(spec, SearchOptions(tmp_path), silent)
    cells, engines = open_cells(spec, tmp_path, "cpu")
    assert (engines["retrain"].engine, engines["retrain"].lanes) == ("stacked", 8)
    assert cells.context.spec.numerics.engine == "stacked"
    assert next(Store(tmp_path).numerics()) == cells.context.spec.numerics.id


def test_as_typed(tmp_path: Path) -> None:
    written(tmp_path)
    done = call("hpo", "small.toml", "--out", "out", "--set", 'study.sampler="map"', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "front of validation error against density" in done.stdout
    assert "Traceback" not in done.stderr
    assert "12 trials from 4 dense trainings" in done.stdout
    assert "test error of 2 new trainings" in done.stdout
    assert (tmp_path / "out/search.png").exists()
    for command in (["status", "out"], ["export", "out", "--to", "csv", "--out", "all.csv"]):
        again = call(*command, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
    refused = call("map", "out", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the trials of a search do not form a grid" in refused.stderr


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


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_where_all_cells_are_tried_the_search_ends(tmp_path: Path) -> None:
    space = {"learning_rate": [0.1, 0.05], "epochs": [2, 4]}
    study = {"sampler": "optuna.samplers:BruteForceSampler"}
    result = search_pruned(pruned_spec(space=space, trials=40, study=study), SearchOptions(tmp_path), silent)
    trials = study_in(tmp_path).trials
    assert {each.state for each in trials} == {TrialState.COMPLETE}
    assert len({tuple(sorted(each.params.items())) for each in trials}) == len(trials) == 12
    assert result["spending"]["trainings"] == 2


def test_a_study_resumed_with_another_space_is_refused_and_left_alone(tmp_path: Path) -> None:
    search_pruned(pruned_spec(trials=3), SearchOptions(tmp_path), silent)
    other = pruned_spec(trials=6, space={"learning_rate": [0.1, 0.2], "epochs": [2, 4]})
    storage = str(tmp_path / "study.log")
    with pytest.raises(UserError, match="learning_rate"):
        search_pruned(other, SearchOptions(tmp_path / "other", storage=storage), silent)
    assert [each.state for each in study_in(tmp_path).trials] == [TrialState.COMPLETE] * 3


def test_trials_whose_trainings_fail_are_counted_and_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("no retraining today")

    monkeypatch.setattr("regimes.experiment.stages.retrain._retrain_together", broken)
    with pytest.raises(UserError, match=r"no trial finished \(3 fail\); the first failed: RuntimeError: no retraining"):
        search_pruned(pruned_spec(trials=3), SearchOptions(tmp_path), silent)
    assert [each.state for each in study_in(tmp_path).trials] == [TrialState.FAIL] * 3


def test_a_failed_final_training_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regimes.experiment.stages import retrain as module

    spec, real = pruned_spec(trials=3), module._retrain_together

    def broken(stages: Any, *given: Any) -> None:
        if any(stage.pruned.dense.seed > 0 for stage in stages):
            raise RuntimeError("not now")
        real(stages, *given)

    monkeypatch.setattr(module, "_retrain_together", broken)
    with pytest.raises(UserError, match="a final training failed: RuntimeError: not now"):
        search_pruned(spec, SearchOptions(tmp_path), silent)
    monkeypatch.setattr(module, "_retrain_together", real)
    result = search_pruned(spec, SearchOptions(tmp_path), silent)
    assert all(None not in each["test_errors"] for each in result["best"])


def test_the_map_sampler_takes_lists_of_one_value(tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 0.01, "high": 1.0, "log": True}, "epochs": [4], "batch_size": [32]}
    result = search_pruned(
        pruned_spec(space=space, trials=36, study={"sampler": "map"}), SearchOptions(tmp_path), silent
    )
    assert result["spending"]["trials"] == 36


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


def test_run_and_clean_of_a_search_folder(tmp_path: Path) -> None:
    search_pruned(pruned_spec(trials=3, seed=5), SearchOptions(tmp_path), silent)
    with pytest.raises(UserError, match="holds the trials of a search; go on with: regimes hpo"):
        run(None, tmp_path)
    assert call("clean", str(tmp_path), cwd=tmp_path).returncode == 0
    assert not list((tmp_path / "weights").glob("*/*.safetensors"))
    more = search_pruned(pruned_spec(trials=6, seed=5), SearchOptions(tmp_path), silent)
    assert more["spending"]["trials"] == 6


def test_a_map_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    run(sweep_of_trials(pruned_spec(), [0.03]), tmp_path / "grid", workers=0)
    other = pruned_spec(trials=3, model={"name": "mlp", "widths": [16]})
    with pytest.raises(UserError, match="made with another"):
        search_pruned(other, SearchOptions(tmp_path / "search", map=tmp_path / "grid"), silent)
    assert not (tmp_path / "search/run.json").exists()
    with pytest.raises(UserError):
        search_pruned(other, SearchOptions(tmp_path / "search", map=tmp_path / "nowhere"), silent)
    assert not (tmp_path / "search/run.json").exists()


def test_progress_of_losses_is_no_percentage(tmp_path: Path) -> None:
    shown: list[bool] = []
    for value in ("loss", "error"):
        spec = pruned_spec(trials=3, study={"value": value})
        search_pruned(spec, SearchOptions(tmp_path / value), silent, lambda study, percent: shown.append(percent))
    assert set(shown[:3]) == {False}
    assert set(shown[-3:]) == {True}


def test_directions_need_their_measures(tmp_path: Path) -> None:
    study = {"sampler": "map", "sampler_options": {"landscape": True}}
    with pytest.raises(UserError, match="landscape: needs the metrics error, lmc and cka"):
        search_pruned(pruned_spec(trials=3, study=study), SearchOptions(tmp_path / "without"), silent)
    measure = {"metrics": ["error", "lmc", "cka"]}
    spec = pruned_spec(trials=36, study=study, measure=measure, retrain_seeds=2)
    assert search_pruned(spec, SearchOptions(tmp_path / "with"), silent)["spending"]["trials"] == 36
