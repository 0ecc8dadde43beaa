"""Searches small enough for a test: synthetic data, a tiny network, two rungs."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna

from regimes.config.hpo import Hpo
from regimes.config.hpo_file import resolve_hpo
from regimes.experiment.context import RunContext
from regimes.experiment.engine_selection import EngineChoice
from regimes.hpo.build_fidelities import ProxyContext
from regimes.hpo.optimize_loop import Limits, run_trials, trial_runner_of
from regimes.hpo.plan import Plan, context_of, plan
from regimes.hpo.trial_runner import TrialRunner

optuna.logging.set_verbosity(optuna.logging.WARNING)

PROGRAM = str(Path(sys.executable).with_name("regimes"))
FILE = """
name = "tiny"
trials = 12
batch = 6
final_seeds = 2
[data]
name = "synthetic"
shape = [8]
train = 240
test = 60
spread = 2.0
[model]
name = "mlp"
widths = [32, 32]
batch_norm = true
[recipe]
epochs = 30
batch_size = 32
[space]
learning_rate = { low = 0.001, high = 1.0, log = true }
batch_size = [16, 32]
[ladder]
densities = [0.06]
reports = [0.5]
proxy_reports = []
[study]
sampler = "random"
pattern = "ladder"
"""
RAW: dict[str, Any] = {
    "name": "tiny",
    "trials": 12,
    "batch": 6,
    "final_seeds": 2,
    "data": {"name": "synthetic", "shape": [8], "train": 200, "test": 60, "spread": 2.0},
    "model": {"name": "mlp", "widths": [32, 32], "batch_norm": True},
    "recipe": {"epochs": 4, "batch_size": 32},
    "space": {
        "learning_rate": {"low": 0.001, "high": 1.0, "log": True},
        "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
        "label_smoothing": {"low": 0.0, "high": 0.2},
    },
    "ladder": {"densities": [0.1], "reports": [0.5], "proxy_reports": []},
    "study": {"sampler": "random", "stopper": "halving", "pattern": "ladder"},
}


def raw(**changes: Any) -> dict[str, Any]:
    """The file as a dict, tables changed key by key."""
    whole = copy.deepcopy(RAW)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(whole.get(key), dict):
            whole[key] = {**whole[key], **value}
        else:
            whole[key] = value
    return whole


def spec(**changes: Any) -> Hpo:
    """The search."""
    return resolve_hpo(raw(**changes))


def clock(context: RunContext, choice: EngineChoice, recipe: object) -> float:
    """A machine on which a step takes as long as the weights of its network are many, stacked half as long."""
    return (context.proxy.kept if isinstance(context, ProxyContext) else 1.0) * (0.5 if choice.lanes > 1 else 1.0)


def engine(context: RunContext, recipes: object, networks: int, workers: int) -> EngineChoice:
    """On that machine proxies stack."""
    return (
        EngineChoice("stacked", 8) if isinstance(context, ProxyContext) and networks > 1 else EngineChoice("eager", 1)
    )


def plan_on(context: RunContext, asked: Hpo) -> Plan:
    """The plan on a machine whose mood is always the same."""
    module = "regimes.hpo.build_fidelities"
    with patch(f"{module}.seconds_per_image", clock), patch(f"{module}.select_engine", engine):
        return plan(asked, context, None)


def planned(asked: Hpo, folder: Path | None = None) -> tuple[Plan, TrialRunner]:
    """Its plan and its climb, without a map."""
    context = context_of(asked, "cpu", folder or Path())
    found = plan_on(context, asked)
    return found, trial_runner_of(found, context, folder)


def done(asked: Hpo, stopper: optuna.pruners.BasePruner | None = None, folder: Path | None = None) -> optuna.Study:
    """The study of a search, in memory."""
    _, climb = planned(asked, folder)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=stopper)
    run_trials(study, climb, asked.batch, Limits(asked.trials))
    return study


def call(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [PROGRAM, *command]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def written(folder: Path) -> Path:
    """The file of a search."""
    path = folder / "tiny.toml"
    path.write_text(FILE)
    return path


def finished(study: optuna.Study) -> dict[int, tuple[Any, ...]]:
    return {each.number: (each.state, each.value, each.params) for each in study.trials if each.state.is_finished()}
