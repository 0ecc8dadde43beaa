"""Time the training of every fidelity, in turn, on an otherwise idle machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from regimes.config.hpo import Hpo
from regimes.config.recipe import Recipe
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.engine_selection import EngineChoice, seconds_per_image
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.validation import validate
from regimes.landscape.error import mean_error
from regimes.research.hpo_benchmark.fidelities import from_facts

ROUNDS = 5
MIDDLE_VALUES = ("sam_rho", "label_smoothing")  # timed at the middle of their range

Seconds = dict[str, dict[str, float]]  # {batch size: {"alone", "judged", fleet's lanes: seconds of one network}}


def time_fidelities(spec: Hpo, fidelities: Sequence[dict[str, Any]], context: RunContext) -> dict[str, Seconds]:
    """Return {fidelity: {batch size: seconds}}, medians of several rounds with all fidelities in turn.

    Seconds of a full training "alone", of one validation ("judged"), and per network in fleets, by number of lanes.
    """
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(ROUNDS):
        for facts in fidelities:
            fidelity, built = from_facts(facts, context, spec.recipe)
            for size in batch_sizes(spec):
                recipe = fidelity.recipe(spec.recipe.model_copy(update=timed_setting(spec, size)))
                row = {"alone": _training(built, recipe, EngineChoice("eager", 1)), "judged": _judged(built, recipe)}
                for lanes in fleet_sizes(built):
                    row[str(lanes)] = _training(built, recipe, EngineChoice(built.choice.engine, lanes))
                found.setdefault(fidelity.name, {}).setdefault(str(size), []).append(row)
    return {name: {size: _medians(rows) for size, rows in each.items()} for name, each in found.items()}


def fleet_sizes(built: Fidelity) -> list[int]:
    """Return the fleet sizes of a fidelity: powers of two up to its largest fleet."""
    lanes = built.lanes_for(1) if built.choice.lanes > 1 else built.choice.lanes + 1
    found = []
    while lanes <= built.choice.lanes:
        found.append(lanes)
        lanes *= 2
    return found


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def batch_sizes(spec: Hpo) -> list[int]:
    """Return the batch sizes of a search."""
    dimension = spec.space.get("batch_size")
    chosen = dimension.choices if dimension is not None and dimension.choices else (spec.recipe.batch_size,)
    return [int(each) for each in chosen]


def timed_setting(spec: Hpo, size: int) -> dict[str, Any]:
    """Return the hyperparameters that affect the time of a step: batch size, SAM, label smoothing."""
    middle: dict[str, Any] = {name: sum(spec.space[name].ends) / 2 for name in MIDDLE_VALUES if name in spec.space}
    return {"batch_size": size, **middle}


def _training(built: Fidelity, recipe: Recipe, choice: EngineChoice) -> float:
    """Seconds of a full training of one network without evaluations, extrapolated from a few steps."""
    steps = len(built.context.data.train.targets) // recipe.batch_size
    return seconds_per_image(built.context, choice, recipe) * steps * recipe.batch_size * recipe.epochs


def _judged(built: Fidelity, recipe: Recipe) -> float:
    """Seconds of the evaluation and validation that follow a training or a reported segment."""
    model, val = built.context.new_model(seed=0), built.context.data.val
    with one_thread():
        started = time.perf_counter()
        mean_error(model, val, recipe.loss_fn)
        validate(model, val, recipe)
        return time.perf_counter() - started


def machine_load() -> str:
    """Return the machine's load average, as text."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
