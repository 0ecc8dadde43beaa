"""Searches for pruned networks, small enough for a test: synthetic data and a tiny network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import optuna

from regimes.config.hpo import Hpo
from regimes.config.hpo_file import resolve_hpo
from regimes.config.sweep import Sweep
from regimes.config.sweep_file import resolve_sweep
from regimes.hpo.optuna_study import open_storage

FILE = """
objective = "pruned"
name = "small"
trials = 12
batch = 6
final_seeds = 2
[data]
name = "synthetic"
shape = [8]
train = 200
test = 60
spread = 2.0
[model]
name = "mlp"
widths = [32, 32]
batch_norm = true
[recipe]
epochs = 4
batch_size = 32
last = 1
[retrain]
epochs = 2
[space]
learning_rate = { low = 0.01, high = 1.0, log = true }
epochs = [2, 4]
[load]
density = [0.05, 0.2, 0.6]
[study]
sampler = "random"
"""
RAW: dict[str, Any] = {
    "objective": "pruned",
    "name": "small",
    "trials": 12,
    "batch": 6,
    "final_seeds": 2,
    "data": {"name": "synthetic", "shape": [8], "train": 200, "test": 60, "spread": 2.0},
    "model": {"name": "mlp", "widths": [32, 32], "batch_norm": True},
    "recipe": {"epochs": 4, "batch_size": 32, "last": 1},
    "retrain": {"epochs": 2},
    "space": {"learning_rate": {"low": 0.01, "high": 1.0, "log": True}, "epochs": [2, 4]},
    "load": {"density": [0.05, 0.2, 0.6]},
    "study": {"sampler": "random"},
}


def pruned_spec(**changes: Any) -> Hpo:
    """The small search, with tables updated."""
    raw = copy.deepcopy(RAW)
    for name, each in changes.items():
        whole = not isinstance(each, dict) or name == "space" or "name" in each
        raw[name] = each if whole else {**raw.get(name, {}), **each}
    return resolve_hpo(raw)


def written(folder: Path) -> Path:
    """The small search as a file."""
    file = folder / "small.toml"
    file.write_text(FILE)
    return file


def silent(text: str) -> None:
    """Say nothing."""


def study_in(folder: Path, name: str = "small") -> optuna.Study:
    """The study of a search in a folder."""
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
