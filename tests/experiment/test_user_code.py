"""A user's own code: all of it is in the key, and nothing it does stops the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import done, write_toml

from regimes.errors import UserError
from regimes.experiment.run import Result, prepare, run
from regimes.experiment.store import Store
from regimes.models.mlp import MLP

Sweep = dict[str, Any]
Run = Callable[..., Result]
IN_WORKER = "regimes.experiment.worker" in sys.orig_argv


OWN = """
import random
import numpy as np
import torch
from torch import nn
from regimes import Dataset
from part import act

def data(classes=2, seeded=True):
    x = (np.random.default_rng(0) if seeded else np.random.default_rng()).standard_normal((160, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    made = Dataset.from_arrays(train=(x[:120], y[:120]), test=(x[120:], y[120:]), title="own")
    return Dataset(made.train, made.val, made.test, classes, "own")

def net(input_shape, classes):
    model = nn.Sequential(nn.Linear(4, 8), act(), nn.Linear(8, classes))
    with torch.no_grad():
        model[0].weight.mul_(np.random.rand() + random.random())
    return model

def tied(input_shape, classes):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, classes))
    model[2].weight = model[0].weight
    return model

def wide(input_shape, classes):
    return nn.Linear(4, classes + 1)

def everything(scores, keep):
    return {name: score.numel() for name, score in scores.items()}

def quitting(candidate):
    raise SystemExit(0)

def quitting_later(candidate):
    if candidate.density > 0.3:
        raise SystemExit(0)
    return {name: weight.detach().abs() for name, weight in candidate.weights.items()}

def half(candidate):
    return {name: weight.detach().flatten()[:2] for name, weight in candidate.weights.items()}
"""


@pytest.fixture
def own(tmp_path: Path, tiny: Sweep, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a user's folder: own.py, part.py and a sweep file that names them, under module names of its own."""
    numbers = iter(range(99))

    def make(**change: Any) -> Path:
        number = f"{abs(hash(str(tmp_path)))}_{next(numbers)}"
        folder = tmp_path / f"user{number}"
        folder.mkdir()
        (folder / f"own{number}.py").write_text(OWN.replace("from part", f"from part{number}"))
        (folder / f"part{number}.py").write_text("from torch.nn import ReLU as act\n")
        sweep = {**tiny, "data": {"name": f"own{number}:data"}, "model": {"name": f"own{number}:net"}}
        sweep["recipe"] = {"epochs": 4, "batch_size": 16, "augment": "none"}
        for table, values in change.items():
            values = {
                key: str(each).replace("own:", f"own{number}:") if "own:" in str(each) else each
                for key, each in values.items()
            }
            sweep[table] = {**sweep[table], **values}
        return write_toml(folder / "s.toml", sweep)

    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return make


def test_a_model_that_draws_from_numpy_or_random_has_the_same_bits_too(
    own: Callable[..., Path], tmp_path: Path
) -> None:
    file = own()
    results = [
        done(Store(run(file, tmp_path / f"r{workers}", workers=workers, engine="eager").folder)) for workers in (0, 2)
    ]
    assert results[0] == results[1]


def test_a_changed_file_that_a_users_module_imports_changes_the_keys(own: Callable[..., Path]) -> None:
    from regimes.source_hash import fingerprint, imported_sources

    file = own()
    module = next(file.parent.glob("own*.py"))
    before = fingerprint(imported_sources(str(module)))
    assert len(imported_sources(str(module))) == 2
    part = next(file.parent.glob("part*.py"))
    part.write_text("from torch.nn import Tanh as act\n")
    assert fingerprint(imported_sources(str(module))) != before


def test_a_module_edited_since_its_import_is_refused(own: Callable[..., Path], tmp_path: Path) -> None:
    file = own()
    prepare(file, tmp_path / "r")
    next(file.parent.glob("part*.py")).write_text("from torch.nn import Tanh as act\n")
    with pytest.raises(UserError, match="changed since it was imported; restart Python"):
        prepare(file, tmp_path / "r")


def test_the_number_of_classes_is_part_of_the_key(own: Callable[..., Path], tmp_path: Path) -> None:
    keys = [{stage.key for stage in prepare(own(data={"classes": n}), tmp_path / "r").stages} for n in (2, 3)]
    assert not keys[0] & keys[1]


def test_data_that_differ_each_time_are_noticed(own: Callable[..., Path], tmp_path: Path) -> None:
    result = run(own(data={"seeded": False}), tmp_path / "r", workers=1)
    assert all("is not the same each time it is loaded" in error for error in result.progress.failed.values())
    assert result.progress.failed


def test_tied_weights_are_pruned_as_one(own: Callable[..., Path], tmp_path: Path) -> None:
    assert not run(own(model={"name": "own:tied"}), tmp_path / "r", workers=0).progress.failed


def test_a_model_with_wrong_outputs_is_said_before_any_work(own: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"for two inputs it returned \(2, 3\); logits of shape \(2, 2\)"):
        prepare(own(model={"name": "own:wide"}), tmp_path / "r")


@pytest.mark.parametrize(
    ("load", "line"),
    [
        ({"allocation": "own:everything"}, r"keeps 32 of 32 weights; density 0.2 needs 6"),
        ({"pruner": "own:quitting"}, r"quitting', allocation = 'uniform' raised SystemExit: 0"),
        ({"pruner": "own:half"}, r"returns a tensor of shape \(2,\) for '0.weight'; expected .* \(8, 4\)"),
        ({"pruner": "torch:numel"}, r"raised TypeError: numel\(\): argument .input. .* must be Tensor, not Candidate"),
    ],
)
def test_a_users_pruner_is_tried_before_any_work(
    own: Callable[..., Path], tmp_path: Path, load: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        prepare(own(load=load), tmp_path / "r")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_code_that_quits_is_a_failure(own: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    result = run(own(load={"pruner": "own:quitting_later"}), tmp_path / "r", workers=workers)
    assert set(result.progress.failed.values()) == {"SystemExit: 0"}


def reading_mlp(input_shape: tuple[int, ...], classes: int) -> MLP:
    """A model whose user starts children: one that reads standard input, one that outlives a killed worker."""
    subprocess.run(["cat"], check=True, capture_output=True)
    if os.environ.get("REGIMES_TEST_FORK") and IN_WORKER:
        subprocess.Popen(["sleep", "60"])
        os.kill(os.getpid(), 9)
    return MLP(input_shape, classes, [4])


def test_children_of_a_users_code_stop_nobody(tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    before = os.dup(0)
    os.dup2(nothing, 0)  # pytest's own standard input may be anything
    try:
        tiny["model"] = {"name": "test_user_code:reading_mlp"}
        assert not run_tiny(tiny, workers=1).progress.todo
        monkeypatch.setenv("REGIMES_TEST_FORK", "1")
        result = run_tiny(tiny, "dying", workers=1)
        assert all("died 3 times" in error for error in result.progress.failed.values())
    finally:
        os.dup2(before, 0)
