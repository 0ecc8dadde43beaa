"""Seconds of every course, measured by themselves, in turn, while nothing else runs."""

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
MIDDLE = ("sam_rho", "label_smoothing")

Seconds = dict[str, dict[str, float]]  # {batch size: {"alone", "judged", fleet's lanes: seconds of one network}}


def timed(spec: Hpo, courses: Sequence[dict[str, Any]], context: RunContext) -> dict[str, Seconds]:
    """{course: seconds of a whole training}: the median of some rounds, all courses in turn in each.

    By batch size: of a network trained "alone", of being "judged" once, and of one lane of a fleet, by its lanes.
    """
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(ROUNDS):
        for facts in courses:
            course, rung = from_facts(facts, context, spec.recipe)
            for size in sizes(spec):
                recipe = course.recipe(spec.recipe.model_copy(update=usual(spec, size)))
                row = {"alone": _training(rung, recipe, EngineChoice("eager", 1)), "judged": _judged(rung, recipe)}
                for lanes in fleets(rung):
                    row[str(lanes)] = _training(rung, recipe, EngineChoice(rung.choice.engine, lanes))
                found.setdefault(course.name, {}).setdefault(str(size), []).append(row)
    return {name: {size: _medians(rows) for size, rows in each.items()} for name, each in found.items()}


def fleets(rung: Fidelity) -> list[int]:
    """Numbers of lanes in which networks of a rung are trained together: each twice the one before."""
    lanes = rung.lanes_for(1) if rung.choice.lanes > 1 else rung.choice.lanes + 1
    found = []
    while lanes <= rung.choice.lanes:
        found.append(lanes)
        lanes *= 2
    return found


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def sizes(spec: Hpo) -> list[int]:
    """The batch sizes of a search."""
    dimension = spec.space.get("batch_size")
    chosen = dimension.choices if dimension is not None and dimension.choices else (spec.recipe.batch_size,)
    return [int(each) for each in chosen]


def usual(spec: Hpo, size: int) -> dict[str, Any]:
    """What a step's seconds rest on: the batch, whether it is SAM's, whether labels are smoothed."""
    middle: dict[str, Any] = {name: sum(spec.space[name].ends) / 2 for name in MIDDLE if name in spec.space}
    return {"batch_size": size, **middle}


def _training(rung: Fidelity, recipe: Recipe, choice: EngineChoice) -> float:
    """Seconds of a whole training of one network, from a few steps; nothing is judged in it."""
    steps = len(rung.context.data.train.targets) // recipe.batch_size
    return seconds_per_image(rung.context, choice, recipe) * steps * recipe.batch_size * recipe.epochs


def _judged(rung: Fidelity, recipe: Recipe) -> float:
    """Seconds of what follows a training, or a part of it that is reported: its own evaluation, and its value."""
    model, val = rung.context.new_model(seed=0), rung.context.data.val
    with one_thread():
        started = time.perf_counter()
        mean_error(model, val, recipe.loss_fn)
        validate(model, val, recipe)
        return time.perf_counter() - started


def idle() -> str:
    """How busy the machine was beside this."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
