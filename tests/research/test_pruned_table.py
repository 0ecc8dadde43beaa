"""The table of pruned networks: recorded with real training, resumed, and read."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from regimes.config.hpo_file import read_hpo
from regimes.config.keys import seed_of
from regimes.errors import UserError
from regimes.hpo.plan import context_of
from regimes.hpo.validation import validate
from regimes.landscape.measure_networks import measure
from regimes.pruners.prune import prune
from regimes.research.hpo_benchmark import record_pruned as recorder
from regimes.research.hpo_benchmark.commands import app
from regimes.research.hpo_benchmark.fidelities import FULL, RecordedFidelity
from regimes.research.hpo_benchmark.pruned_page import pruned_page
from regimes.research.hpo_benchmark.pruned_table import EVALUATED, VARIABLES, open_pruned, write_pruned
from regimes.research.hpo_benchmark.record import settings
from regimes.research.hpo_benchmark.recordings import PrunedDesign, Recording
from regimes.training.train import train

FILE = """
[data]
name = "synthetic"
shape = [8]
train = 200
test = 80
spread = 2.0

[model]
name = "mlp"
widths = [12, 12]
batch_norm = true

[recipe]
base = "synthetic"
epochs = 4

[space]
learning_rate = [0.05, 1e30]
weight_decay = { low = 1e-5, high = 1e-2, log = true }
batch_size = [32, 64]
"""
DESIGN = PrunedDesign(4, (0.2, 0.6), (0.5, 1.0))


def recording(folder: Path) -> Recording:
    """A search that takes seconds; half of its settings diverge."""
    (folder / "search.toml").write_text(FILE)
    return Recording("small", str(folder / "search.toml"), "clusters", 4, (RecordedFidelity(FULL),), DESIGN, ())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, Path, list[xr.Dataset]]:
    """A recording, its run folder, and the table after each part."""
    folder = tmp_path_factory.mktemp("pruned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "PART", 2)
        patch.setattr("regimes.research.hpo_benchmark.timing.ROUNDS", 1)
        tables = list(recorder.record_pruned(recording(folder), folder / "run", 2, lambda line: None))
    return recording(folder), folder / "run", tables


def stable(data: xr.Dataset, setting: int) -> bool:
    """Whether a setting's rate is the small one."""
    return float(data["value"].sel(hyperparameter="learning_rate").values[setting]) < 1


def test_the_table_grows_by_parts(recorded: tuple[Recording, Path, list[xr.Dataset]]) -> None:
    _, _, tables = recorded
    counts = [[int(each["val_error"].isel(dense_seed=seed).notnull().sum()) for seed in (0, 1)] for each in tables]
    assert counts == [[2 * 8, 0], [4 * 8, 0], [4 * 8, 8]]  # two snapshots, two densities, two copies
    last = tables[-1]
    (again,) = np.flatnonzero(last["val_error"].isel(dense_seed=1).notnull().any(["snapshot", "density", "copy"]))
    assert stable(last, int(again))
    for first, second in itertools.pairwise(tables):
        xr.testing.assert_equal(second.where(first.notnull())[[*VARIABLES]], first[[*VARIABLES]])


def test_diverged_trainings_are_infinite(recorded: tuple[Recording, Path, list[xr.Dataset]]) -> None:
    last = recorded[2][-1].isel(dense_seed=0)
    kinds = [stable(last, number) for number in range(4)]
    assert sorted(kinds) == [False, False, True, True]
    for number, sound in enumerate(kinds):
        for name in EVALUATED:
            for each in (name, f"dense_{name}"):
                assert (np.isfinite(last[each].values[number]) == sound).all()
                assert not np.isnan(last[each].values[number]).any()
        assert (np.isfinite(last["val_error_by_epoch"].values[number]) == sound).all()
        for name in ("lmc", "cka", "hessian_trace", "kept"):
            assert (np.isfinite(last[name].values[number]) == sound).all()


def test_two_ways_to_the_same_errors(recorded: tuple[Recording, Path, list[xr.Dataset]]) -> None:
    """Errors of the last weights are those of the history at their epoch; the mask has the density."""
    last = recorded[2][-1]
    np.testing.assert_array_equal(last["val_error_by_epoch"].isel(epoch=-1), last["val_error"])
    at = last["dense_val_error_by_epoch"].sel(epoch=last["snapshot"].values)
    sound = np.isfinite(last["dense_val_error"].values)
    np.testing.assert_array_equal(at.values[sound], last["dense_val_error"].values[sound])
    away = (last["kept"] - last["density"]).values
    assert np.nanmax(np.abs(away)) < 0.01


def test_a_row_is_that_training(recorded: tuple[Recording, Path, list[xr.Dataset]]) -> None:
    """Trained, stopped, pruned and retrained without stages: the same numbers."""
    made, folder, tables = recorded
    spec, last = read_hpo(made.file), tables[-1]
    number = next(each for each in range(4) if stable(last, each))
    context = context_of(spec, "cpu", folder)
    recipe = recorder.evaluated_recipe(spec.recipe, settings(spec.space, 4)[number])
    again = recorder.evaluated_recipe(spec.recipe, {})
    seed = number * recorder.SEEDS_PER_SETTING
    model = context.new_model(seed_of("init", seed))
    (stopped,) = train(model, context.data, recipe, ("dense", seed), [2])
    mask = prune(context.model_with(stopped.weights), 0.2)
    copies = []
    for copy in (0, 1):
        start = context.model_with(stopped.weights)
        *_, done = train(start, context.data, again, ("retrain", seed, copy), [4], mask=mask)
        copies.append(context.model_with(done.weights))
        row = last.isel(setting=number, dense_seed=0, snapshot=0, density=0, copy=copy)
        for split in ("train", "val", "test"):
            found = validate(copies[-1], getattr(context.data, split), recipe)
            assert float(row[f"{split}_loss"]) == pytest.approx(found.loss, rel=1e-4)
            assert float(row[f"{split}_error"]) == pytest.approx(found.error)
        assert float(row["val_calibrated"]) == pytest.approx(found_calibrated(copies[-1], context, recipe), rel=1e-4)
    (lmc,) = (each for each in measure(copies, context.data, ["lmc"], masks=[mask, mask]) if each.variable == "lmc")
    assert float(last["lmc"].isel(setting=number, dense_seed=0, snapshot=0, density=0, pair=0)) == pytest.approx(
        lmc.value.value,  # type: ignore[union-attr]
        abs=1e-5,
    )


def found_calibrated(model: torch.nn.Module, context: Any, recipe: Any) -> float:
    """The calibrated validation loss of a network."""
    return validate(model, context.data.val, recipe).calibrated


def test_a_killed_recording_goes_on(recorded: tuple[Recording, Path, list[xr.Dataset]]) -> None:
    """Lost and damaged records are made again, the others stay, and the table is the same."""
    made, folder, tables = recorded
    files = sorted((folder / "records").glob("*/*.json"))
    before = {path: path.stat().st_mtime_ns for path in files}
    for path in files[::7]:
        path.unlink()
    files[3].write_text("cut")
    (*_, again) = recorder.record_pruned(made, folder, 1, lambda line: None)
    xr.testing.assert_identical(again, tables[-1])
    lost = {*files[::7], files[3]}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path not in lost)


def test_a_table_survives_its_file(recorded: tuple[Recording, Path, list[xr.Dataset]], tmp_path: Path) -> None:
    made, _, tables = recorded
    write_pruned(tables[-1], tmp_path / "pruned.nc")
    data, facts = open_pruned(tmp_path / "pruned.nc")
    xr.testing.assert_equal(data, tables[-1])
    assert facts["design"]["settings"] == 4
    assert set(facts["seconds"]) == {"dense", "retrain", "judged", "evaluated", "prune", *recorder.MEASURES}
    assert set(facts["seconds"]["dense"]) == {"32", "64"}
    rows = [*facts["seconds"]["dense"].values(), facts["seconds"]["retrain"]]
    assert all("alone" in row and all(each > 0 for each in row.values()) for row in rows)
    for table in (tables[0], tables[-1]):
        text = pruned_page(made, table).text()
        assert "Test error of the settings" in text
    page = pruned_page(made, tables[-1])
    assert "Recorded: 5 of 5 dense trainings, 2 of which diverged." in page.paragraphs[1]
    with pytest.raises(UserError, match="no table of pruned networks; make one with"):
        open_pruned(tmp_path / "none.nc")
    tables[-1].drop_vars("lmc").to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(UserError, match="not a table of pruned networks"):
        open_pruned(tmp_path / "other.nc")


def test_a_design_counts_its_trainings() -> None:
    design = dataclasses.replace(DESIGN, settings=40, densities=(0.1, 0.2, 0.3), snapshots=(0.25, 0.5, 1.0))
    assert (design.better, design.dense_trainings, design.retrainings) == (10, 50, 18)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["record", "digit", "--objective", "pruned"], "unknown recording 'digit' (did you mean 'digits'?)"),
        (["record", "digits", "--objective", "both"], "--objective both: unknown; allowed: full, pruned"),
        (["record", "digits", "--objective", "pruned", "--settings", "300"], "the recording has 256"),
        (["compare", "text"], "no recording; make one with"),
    ],
)
def test_wrong_arguments_are_a_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert told in result.stderr
