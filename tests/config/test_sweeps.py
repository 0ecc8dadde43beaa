"""The sweeps that come with the project: each is valid, and runs at a tiny scale on data of the same shape."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import regimes
from regimes.config.sweep_file import read_sweep
from regimes.experiment.run import Result
from regimes.models.build import build

ALL = sorted((Path(__file__).parents[2] / "sweeps").glob("*.toml"))
FILES = [file for file in ALL if not file.stem.endswith(("-discover", "-hpo", "-proof", "-search"))]
TEXT = [file for file in FILES if file.stem.startswith("text")]
STUDY = [file for file in FILES if file.stem.endswith(("-epochs", "-batch-size")) and "cifar" in file.stem]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_sweep_is_valid(file: Path) -> None:
    sweep = read_sweep(file)
    assert sweep.name == file.stem
    assert len(sweep.load.axis[1]) >= 5


@pytest.mark.parametrize("file", STUDY, ids=lambda file: file.stem)
def test_the_study_is_said_as_it_was_done(file: Path) -> None:
    sweep = read_sweep(file)
    assert (sweep.dense_seeds, sweep.retrain_seeds) == (3, 3)
    assert sweep.load.density == (0.05, 0.06, 0.07, 0.08, 0.1, 0.14, 0.2, 0.4, 0.8)
    assert (sweep.load.pruner, sweep.load.allocation, sweep.load.schedule) == ("magnitude", "uniform", "one-shot")
    for recipe in (sweep.recipe, sweep.retrain):
        assert (recipe.epochs, recipe.learning_rate, recipe.milestones, recipe.gamma) == (160, 0.1, (0.5, 0.75), 0.1)
        assert (recipe.momentum, recipe.nesterov, recipe.weight_decay, recipe.last) == (0.9, False, 1e-4, 5)
        assert recipe.augment == "crop-flip"
    if "epochs" in sweep.temperature:
        assert sweep.recipe.batch_size == 64
        assert sweep.temperature["epochs"] == tuple(range(10, 161, 10))
    else:
        assert sweep.retrain.batch_size == 128
        hottest = sweep.dense_recipe({"batch_size": 16})
        assert (hottest.batch_size, hottest.epoch_batch) == (16, 128)  # the steps of 160 epochs at 128
    model = build(sweep.model.name, sweep.model.options, (3, 32, 32), 10, 0)
    assert sum(each.numel() for each in model.parameters()) > 200_000


@pytest.mark.parametrize("file", STUDY, ids=lambda file: file.stem)
def test_the_study_runs_at_a_tiny_scale(file: Path, archives: Path, run_tiny: Callable[..., Result]) -> None:
    raw: dict[str, Any] = tomllib.loads(file.read_text())
    raw["data"] |= {"root": str(archives), "images": 120, "test_images": 20}
    if raw["data"]["name"] == "cifar100":
        raw["data"]["images"] = 400
    raw["recipe"] |= {"epochs": 2, "batch_size": 32}
    raw["temperature"] = {"epochs": [1, 2]} if "epochs" in raw["temperature"] else {"batch_size": [16, 64]}
    raw["load"]["density"] = [0.1]
    raw |= {"dense_seeds": 1, "retrain_seeds": 2}
    small = {"preresnet": {"depth": 14}, "densenet": {"depth": 7}, "vgg": {"width": 16}}
    raw["model"] |= small[raw["model"]["name"]]
    record = regimes.open(run_tiny(raw).folder)
    assert bool((record.status == 1).all())
    assert record.lmc.notnull().all()
    assert float(record.kept[0].mean()) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("file", TEXT, ids=lambda file: file.stem)
def test_text_runs_at_a_tiny_scale(file: Path, run_tiny: Callable[..., Result]) -> None:
    raw: dict[str, Any] = tomllib.loads(file.read_text())
    raw["data"] |= {"train": 64, "val": 20, "test": 20}
    raw["model"] |= {"width": 16}
    raw["recipe"] |= {"epochs": 3}
    raw["retrain"] |= {"epochs": 2}
    raw["temperature"] = {"epochs": [2, 3]} if "epochs" in raw["temperature"] else {"learning_rate": [2e-4, 1e-2]}
    raw["load"]["density"] = [0.1]
    raw |= {"dense_seeds": 1, "retrain_seeds": 2}
    raw["measure"]["hessian"] = {"images": 8, "rel_stderr": 0.5}
    record = regimes.open(run_tiny(raw).folder)
    assert bool((record.status == 1).all())
    for name in ("lmc", "cka", "hessian_trace", "test_error"):
        assert record[name].notnull().all()
    assert record.attrs["chance_error"] > 0.75
