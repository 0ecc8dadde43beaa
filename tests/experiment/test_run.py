"""The experiment as a whole: done once, resumed, grown, the same bits whoever does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from conftest import done

import regimes
from regimes.config.sweep_file import resolve_sweep
from regimes.experiment.run import Result, prepare
from regimes.experiment.schedule import fleets
from regimes.experiment.store import Store

Sweep = dict[str, Any]
Run = Callable[..., Result]


def test_a_sweep_is_done_once(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    result = run_tiny(tiny)
    assert not result.progress.todo
    assert count == {"train": 2, "prune": 4, "retrain": 8, "measure": 4 * (2 + 1 + 1)}
    count.clear()
    run_tiny(tiny)
    assert not count


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"load": {"density": [0.2, 0.6, 0.4]}}, {"prune": 2, "retrain": 4, "measure": 8}),
        ({"temperature": {"epochs": [2, 3, 4]}}, {"train": 1, "prune": 2, "retrain": 4, "measure": 8}),
        ({"dense_seeds": 2}, {"train": 2, "prune": 4, "retrain": 8, "measure": 16}),
        ({"retrain_seeds": 3}, {"retrain": 4, "measure": 4 * (1 + 2 + 2)}),
        ({"measure": {"metrics": ["error", "lmc", "cka", "hessian_top"]}}, {"measure": 8}),
        ({"measure": {"metrics": ["error", "lmc", "cka"], "cka": {"on": "logits"}}}, {"measure": 4}),
        ({"retrain": {"epochs": 3}}, {"retrain": 8, "measure": 16}),
        ({"name": "other"}, {}),
    ],
)
def test_growing_a_sweep_does_only_what_is_new(
    tiny: Sweep, run_tiny: Run, count: Counter[str], change: Sweep, expected: dict[str, int]
) -> None:
    first = run_tiny(tiny)
    before = done(Store(first.folder))
    count.clear()
    run_tiny({**tiny, **change})
    assert count == expected
    after = done(Store(first.folder))
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize(
    ("recipe", "engine"),
    [
        ({}, "stacked"),
        ({"optimizer": "adamw", "learning_rate": 0.01, "warmup": 0.3, "clip_norm": 1.0}, "stacked"),
        ({"optimizer": "adam", "learning_rate": 0.01, "schedule": "linear"}, "eager"),
        ({"optimizer": "muon", "learning_rate": 0.01}, None),
    ],
)
def test_snapshots_of_one_training_resume_from_one_another(
    tiny: Sweep, run_tiny: Run, recipe: Sweep, engine: str | None
) -> None:
    tiny["recipe"] |= recipe
    grown = {**tiny, "temperature": {"epochs": [2, 3, 4]}}
    run_tiny(tiny, "a", engine=engine)
    run_tiny(grown, "a")
    run_tiny(grown, "b", engine=engine)
    stores = [Store(run_tiny(grown, name).folder) for name in "ab"]
    assert done(stores[0]) == done(stores[1])


def test_same_numbers_with_no_one_and_two_workers(tiny: Sweep, run_tiny: Run) -> None:
    tiny["model"]["dropout"] = 0.2
    tiny["measure"]["metrics"] = ["error", "lmc", "cka", "hessian_trace", "hessian_top"]
    folders = [run_tiny(tiny, f"w{workers}", workers=workers, engine="eager").folder for workers in (0, 1, 2)]
    results = [done(Store(folder)) for folder in folders]
    assert results[0] == results[1] == results[2]
    records = [regimes.open(folder) for folder in folders]
    xr.testing.assert_identical(records[0], records[2])


@pytest.mark.parametrize(
    "knob", ["batch_size", "learning_rate", "weight_decay", "sam_rho", "momentum", "beta1", "beta2"]
)
def test_every_knob_makes_networks_of_its_own(tiny: Sweep, run_tiny: Run, knob: str) -> None:
    values = {"batch_size": [16, 64], "learning_rate": [0.01, 0.1], "weight_decay": [0.0, 0.1], "sam_rho": [0.0, 0.5]}
    values |= {"momentum": [0.0, 0.9], "beta1": [0.5, 0.9], "beta2": [0.9, 0.99]}
    tiny["recipe"] |= {"optimizer": "adamw", "learning_rate": 0.01} if knob.startswith("beta") else {}
    tiny["temperature"] = {knob: values[knob]}
    record = regimes.open(run_tiny(tiny).folder)
    assert record.sizes[knob] == 2
    assert bool((record.status == 1).all())
    assert not (record.train_loss.isel({knob: 0}) == record.train_loss.isel({knob: 1})).all()


def test_several_knobs_make_a_grid(tiny: Sweep, run_tiny: Run) -> None:
    tiny["temperature"] = {"epochs": [2, 4], "batch_size": [16, 32]}
    result = run_tiny(tiny)
    record = regimes.open(result.folder)
    assert record.lmc.sizes == {"epochs": 2, "batch_size": 2, "density": 2, "dense_seed": 1, "pair": 1}
    assert len({stage.training for stage in result.stages if stage.kind == "train"}) == 2  # type: ignore[attr-defined]


def test_fleets_share_what_is_shared_and_know_what_they_need(tiny: Sweep, tmp_path: Path) -> None:
    prepared = prepare(resolve_sweep(tiny), tmp_path / "none")
    grouped = fleets(prepared.progress.todo, {"train": 1, "retrain": 1})
    assert Counter(fleet.kind for fleet in grouped) == {"train": 1, "prune": 2, "retrain": 8, "measure": 4}
    assert {stage.key for fleet in grouped for stage in fleet.stages} == {stage.key for stage in prepared.stages}
    assert not grouped[0].needs
    assert not (tmp_path / "none").exists()


def test_keys_cover_the_science_and_nothing_else(tiny: Sweep, tmp_path: Path) -> None:
    def keys(**change: Any) -> set[str]:
        return {stage.key for stage in prepare(resolve_sweep({**tiny, **change}), tmp_path / "none").stages}

    assert keys() == keys(name="renamed")
    assert keys() == keys(measure={**tiny["measure"], "lmc": {"points": 11}})  # a default, written out
    assert keys(model={"name": "mlp"}) == keys(model={"name": "mlp", "widths": [128, 128], "dropout": 0.0})
    assert keys() != keys(data={**tiny["data"], "seed": 1})
    assert keys() != keys(model={**tiny["model"], "widths": [12, 13]})
    changes = {"momentum": 0.8, "gamma": 0.2, "last": 2, "label_smoothing": 0.1, "nesterov": True, "optimizer": "adam"}
    for field, value in {**changes, "warmup": 0.1, "clip_norm": 1.0}.items():
        assert not keys() & keys(recipe={**tiny["recipe"], field: value}), field
