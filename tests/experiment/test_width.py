"""Width as a second load: networks of every width beside every density, each with the keys it has on its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import regimes
from regimes.config.sweep_file import resolve_sweep
from regimes.errors import UserError
from regimes.experiment.context import RunContext
from regimes.experiment.cost_estimate import estimate
from regimes.experiment.run import Result, prepare
from regimes.experiment.schedule import fleets
from regimes.record.assemble import open_record


@pytest.fixture
def wide(tiny: dict[str, Any]) -> dict[str, Any]:
    """A sweep over widths of a small PreResNet."""
    tiny["data"] = {"name": "synthetic", "shape": [3, 8, 8], "train": 64, "test": 40}
    tiny["model"] = {"name": "preresnet", "depth": 8}
    tiny["recipe"] = {"epochs": 2, "batch_size": 16, "augment": "none"}
    tiny["temperature"] = {"epochs": [1, 2]}
    tiny["load"] = {"density": [0.5, 0.1], "width": [4, 2]}
    tiny["measure"] = {"metrics": ["lmc", "cka"]}
    return tiny


def test_every_width_gets_what_it_gets_alone(wide: dict[str, Any], run_tiny: Callable[..., Result]) -> None:
    result = run_tiny(wide)
    record = open_record(result.folder)
    assert record.lmc.sizes == {"epochs": 2, "width": 2, "density": 2, "dense_seed": 1, "pair": 1}
    assert list(record.width.values) == [2, 4]  # in order, whatever the file's
    assert (record.status == 1).all()
    assert record.dense_test_error.dims == ("epochs", "width", "dense_seed")
    alone = {**wide, "name": "alone", "model": {**wide["model"], "width": 2}, "load": {"density": [0.5, 0.1]}}
    other = run_tiny(alone)
    assert {stage.key for stage in other.stages} < {stage.key for stage in result.stages}
    same = open_record(other.folder)
    for name in ("lmc", "cka", "test_error", "kept"):
        np.testing.assert_array_equal(record[name].sel(width=2).drop_vars("width"), same[name])


def test_fleets_hold_networks_of_one_width(wide: dict[str, Any], tmp_path: Path) -> None:
    wide["temperature"] = {"learning_rate": [0.1, 0.2]}
    prepared = prepare(resolve_sweep(wide), tmp_path / "run", engine="stacked")
    found = fleets(prepared.stages, {"train": 8, "retrain": 8})
    kinds = [(fleet.kind, {stage.coords["width"] for stage in fleet.stages}, len(fleet.stages)) for fleet in found]
    assert all(len(widths) == 1 for _, widths, _ in kinds)
    assert sorted(size for kind, _, size in kinds if kind == "retrain") == [8, 8]


def test_the_plan_knows_that_wide_networks_cost_more(
    wide: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose speed is known: a second a weight for the work of one image."""

    def per_weight(context: RunContext, *_: Any) -> dict[str, float]:
        weights = sum(each.numel() for each in context.new_model(seed=0).parameters())
        return dict.fromkeys(("train", "retrain", "given", "prune", "measure"), float(weights))

    monkeypatch.setattr("regimes.experiment.cost_estimate._calibrated", per_weight)
    found = {}
    for name, widths in {"both": [2, 48], "thin": [2], "thick": [48]}.items():
        asked = {**wide, "load": {**wide["load"], "width": widths}}
        found[name] = estimate(prepare(resolve_sweep(asked), tmp_path / name, engine="eager"), 1)
    both, thin, thick = found["both"], found["thin"], found["thick"]
    assert both.core_seconds == pytest.approx(thin.core_seconds + thick.core_seconds)
    assert thick.core_seconds > 100 * thin.core_seconds
    assert both.disk_bytes == thin.disk_bytes + thick.disk_bytes > 20 * thin.disk_bytes
    assert both.memory_bytes == thick.memory_bytes > thin.memory_bytes


@pytest.mark.parametrize(
    ("load", "model", "line"),
    [
        ({"width": [2, 4]}, {"name": "preresnet", "width": 4}, "model.width: already set in"),
        ({"width": [2, 4]}, {"name": "densenet", "depth": 7}, "model.width: unknown key"),
        ({"width": []}, {"name": "preresnet"}, "load.width: must be a list of at least one value"),
        ({"width": [0, 2]}, {"name": "preresnet"}, "load.width.0"),
        ({"width": [2, 2]}, {"name": "preresnet"}, "load.width: duplicate value 2"),
    ],
)
def test_widths_that_cannot_be_meant(
    wide: dict[str, Any], load: dict[str, Any], model: dict[str, Any], line: str
) -> None:
    wide["model"], wide["load"] = model, {"density": [0.5], **load}
    with pytest.raises(UserError, match=line):
        resolve_sweep(wide)


def test_the_map_has_widths_side_by_side(tmp_path: Path) -> None:
    dims, rng = ("epochs", "width", "density"), np.random.default_rng(0)
    # A barrier wherever width x density is small, told apart from no barrier by far.
    width, density = np.array([4, 8, 16]), np.array([0.05, 0.1, 0.4])
    load = np.broadcast_to(width[:, None] * density, (2, 3, 3))
    lmc = np.where(load < 0.7, -0.2, 0.0) + 0.002 * rng.standard_normal((2, 3, 3))
    grid = xr.Dataset(
        {"lmc": (dims, lmc), "cka": (dims, np.full((2, 3, 3), 0.98)), "test_error": (dims, 0.3 - 0.1 * load / 7)},
        {"epochs": [10, 20], "width": width, "density": density},
    )
    found = regimes.classify(grid)
    assert found.regime.dims == dims
    np.testing.assert_array_equal(found.regime.values == 0, load < 0.7)
    regimes.draw_map(found, tmp_path)
    report = (tmp_path / "README.md").read_text()
    assert "| width, density |" in report
    assert "| 16, 40 % |" in report
