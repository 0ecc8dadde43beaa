"""Shared by all tests: one torch thread, and sweeps small enough to run in a second or two."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from dataset_archives import write_archives
from threadpoolctl import threadpool_limits

from regimes.config.sweep_file import resolve_sweep
from regimes.experiment import dispatch
from regimes.experiment.run import Result, prepare, run
from regimes.experiment.store import Store
from regimes.torchvision_import import torchvision

torch.set_num_threads(1)
threadpool_limits(1, "blas")  # two test processes share two cores
hypothesis.settings.register_profile("regimes", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("regimes")

# Tests for a GPU, pretended or real; see cuda/test_pretended_gpu.py.
collect_ignore = [] if "PRETENDED_CUDA" in os.environ else ["cuda/device"]

# Options that make each model small enough for a test that trains it.
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"widths": [16, 16], "batch_norm": True},
    "preresnet": {"depth": 8, "width": 4},
    "resnet": {"depth": 8, "width": 4},
    "resnet18": {"width": 4},
    "vgg": {"depth": 11, "width": 4},
    "densenet": {"depth": 7, "growth": 4},
    "mobilenetv2": {"width": 0.1, "dropout": 0.0},
    "torchvision": {"arch": "shufflenet_v2_x0_5"},
}

TINY: dict[str, Any] = {
    "name": "tiny",
    "dense_seeds": 1,
    "retrain_seeds": 2,
    "data": {"name": "synthetic", "shape": [8], "train": 200, "test": 80, "spread": 2.0},
    "model": {"name": "mlp", "widths": [12, 12], "batch_norm": True},
    "recipe": {"epochs": 4, "batch_size": 32},
    "temperature": {"epochs": [2, 4]},
    "load": {"density": [0.2, 0.6]},
    "measure": {"metrics": ["error", "lmc", "cka"]},
}


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with small archives of the known data sets, which torchvision takes for whole."""
    datasets = torchvision().datasets
    root = tmp_path_factory.mktemp("archives")
    write_archives(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
        patch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
        patch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield root


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A sweep as a plain dict, to be changed at will."""
    return copy.deepcopy(TINY)


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Result]:
    """Run a sweep given as a dict, in this process, in a folder of the test's own."""

    def go(sweep: dict[str, Any], out: str = "run", **how: Any) -> Result:
        return run(resolve_sweep(sweep), tmp_path / out, **{"workers": 0, **how})

    return go


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Type a regimes command as a user would, in an empty folder."""

    def go(*words: object, **how: Any) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("regimes")), *map(str, words)]
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, **{"cwd": tmp_path, **how}
        )

    return go


@pytest.fixture
def research(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Type ``python -m regimes.research`` in an empty folder."""

    def go(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "regimes.research", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)

    return go


def prepared(tiny: dict[str, Any], tmp_path: Path, model: dict[str, Any], **how: Any) -> Any:
    return prepare(resolve_sweep({**tiny, "model": model}), tmp_path / "none", **how)


def done(store: Store) -> dict[str, Any]:
    """Everything of science in a store: values, histories and weights, not seconds."""
    found = {}
    for path in store.folder.glob("records/*/*.json"):
        key, record = path.stem, store.read(path.stem)
        assert record is not None
        found[key] = (
            record["status"],
            json.dumps(record["values"]),
            json.dumps(record.get("history")),
            record.get("weights"),
        )
    return found


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the stages that are really done, by kind."""
    counts: Counter[str] = Counter()

    def counted(kind: str, do: Callable[..., None]) -> Callable[..., None]:
        def go(fleet: Any, *rest: Any) -> None:
            counts[kind] += len(fleet)
            do(fleet, *rest)

        return go

    functions = {kind: counted(kind, do) for kind, do in dispatch.STAGE_FUNCTIONS.items()}
    monkeypatch.setattr(dispatch, "STAGE_FUNCTIONS", functions)
    return counts


def write_toml(path: Path, sweep: dict[str, Any]) -> Path:
    """Write a sweep as a TOML file (tables of plain values and lists only)."""
    tables = {key: value for key, value in sweep.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in sweep.items() if key not in tables]
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def _key(key: str) -> str:
    return key if key.isidentifier() else f'"{key}"'


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
