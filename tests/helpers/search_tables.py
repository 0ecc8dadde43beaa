"""A recording whose every number is known: losses by formula, seconds by hand."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regimes.config.hpo import Hpo
from regimes.config.hpo_file import resolve_hpo
from regimes.experiment.context import RunContext
from regimes.experiment.engine_selection import EngineChoice
from regimes.hpo.build_fidelities import facts_of
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.plan import context_of
from regimes.research.hpo_benchmark.bench import setup_of
from regimes.research.hpo_benchmark.fidelities import FULL, SEARCHED, RecordedFidelity
from regimes.research.hpo_benchmark.record import settings
from regimes.research.hpo_benchmark.run_method import BenchmarkSetup
from regimes.research.hpo_benchmark.table import SEEDS, SearchTable, assemble

EPOCHS, COUNT, TRIALS = 20, 64, 24
SPEC: dict[str, Any] = {
    "data": {"name": "synthetic", "shape": [8], "train": 1024, "test": 64},
    "model": {"name": "mlp", "widths": [32, 32], "batch_norm": True},
    "recipe": {"epochs": EPOCHS},
    "space": {
        "learning_rate": {"low": 0.001, "high": 1.0, "log": True},
        "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
        "batch_size": [32, 64],
    },
    "trials": TRIALS,
    "batch": 8,
}
SECONDS = {
    FULL: 10.0,
    "narrowed 0.06": 1.0,
    "narrowed 0.12": 2.0,
    "saliency 0.06": 1.5,
    "narrowed 0.12, short": 0.5,
    "quarter of the images": 2.5,
}
DENSITY = {"narrowed 0.06": 0.06, "narrowed 0.12": 0.12, "saliency 0.06": 0.06, "narrowed 0.12, short": 0.12}
ONCE = ("narrowed 0.12",)  # fidelities that are trained with one seed
ALONE = 4.0  # times as long as in a fleet
PROXIES = {
    "narrowed 0.06": "narrowed",
    "narrowed 0.12": "narrowed",
    "saliency 0.06": "channels-saliency",
    "narrowed 0.12, short": "narrowed",
}


def loss_of(setting: dict[str, Any], fidelity: str, seed: int, epoch: int) -> float:
    """Least at a learning rate of 0.1 (of proxies 0.2) and a decay of 1e-4; falls with the epochs; seeds move it."""
    best = 0.2 if fidelity in PROXIES else 0.1
    away = math.log(setting["learning_rate"] / best) ** 2 + 0.1 * math.log(setting["weight_decay"] / 1e-4) ** 2
    noise = np.random.default_rng(abs(hash((setting["learning_rate"], seed, len(fidelity)))) % 2**32).normal()
    return 0.5 + 0.1 * away + 0.02 * float(noise) + 1.0 / epoch


@functools.cache
def world() -> tuple[Hpo, RunContext]:
    """The search and its context."""
    spec = resolve_hpo(SPEC, "tape")
    return spec, context_of(spec, "cpu", Path())


@functools.cache
def rungs() -> dict[str, tuple[RecordedFidelity, Fidelity]]:
    """Every fidelity with its network; engines and times by hand."""
    from regimes.research.hpo_benchmark.fidelities import build_fidelity, part_of

    spec, context = world()
    found = {}
    for name in SECONDS:
        proxy, images = PROXIES.get(name, ""), 0.25 if "images" in name else 1.0
        fidelity = RecordedFidelity(
            name,
            proxy,
            DENSITY.get(name, 1.0),
            images,
            epochs=0.25 if "short" in name else 1.0,
            seeds=1 if name in ONCE else SEARCHED,
        )
        made = build_fidelity(fidelity, spec, context, 1)
        choice = EngineChoice("stacked", 32) if fidelity.proxy else EngineChoice("eager", 1)
        seconds = SECONDS[name] / 5000
        alone = seconds * (ALONE if fidelity.proxy else 1.0)
        found[name] = fidelity, Fidelity(made.density, made.kept, made.context, made.epochs, choice, seconds, alone)
        assert part_of(fidelity, context).data is not None
    return found


def recorded() -> xr.Dataset:
    """The recording as a dataset."""
    values = settings(world()[0].space, COUNT)
    rows = {}
    for place, name in enumerate(SECONDS):
        epochs = rungs()[name][1].epochs
        for seed in range(SEEDS if name == FULL else 1 if name in ONCE else SEARCHED):
            for number, each in enumerate(values):
                losses: list[float | None] = [loss_of(each, name, seed, epoch) for epoch in range(1, epochs + 1)]
                if each["learning_rate"] > 0.9:
                    losses = [None] * epochs
                row: dict[str, Any] = {"loss": losses, "error": losses, "calibrated": losses}
                if name == FULL and losses[-1] is not None:
                    row["test_error"] = 0.1 * losses[-1]
                rows[place, number, seed] = row
    return assemble(list(SECONDS), values, rows, EPOCHS, facts())


def facts() -> dict[str, Any]:
    """How the table was made."""
    import dataclasses

    found = rungs()
    seconds = {
        name: {
            str(size): {"alone": each * ALONE, "8": each, "16": each, "32": each, "judged": 0.01}
            if name in PROXIES
            else {"alone": each, "judged": 0.01}
            for size in SPEC["space"]["batch_size"]
        }
        for name, each in SECONDS.items()
    }
    return {
        "spec": SPEC,
        "courses": [
            {"course": dataclasses.asdict(fidelity), "rung": facts_of(built)} for fidelity, built in found.values()
        ],
        "made": {
            name: {"alone": 1.0, "together": 3.0} if name in PROXIES else {"alone": 0.5, "together": 0.5}
            for name in found
        },
        "seconds": seconds,
        "asking": 0.0,
        "beside": "load 0.0 on 2 cores",
        "classes": 10,
        "whole": ["batch_size"],
        "default": {"test_error": [0.1] * SEEDS, "calibrated": [0.6] * SEEDS},
    }


@functools.cache
def table() -> SearchTable:
    """The recording, opened."""
    return SearchTable(recorded(), facts())


@functools.cache
def benchmark_setup() -> BenchmarkSetup:
    """What methods are replayed on."""
    return setup_of(table(), Path())
