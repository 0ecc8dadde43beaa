"""Seconds of every course, measured by themselves, in turn, while nothing else runs."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from regimes.flow.engine import Choice
from regimes.flow.lab import Lab, one_thread
from regimes.hpo.judging import judge
from regimes.hpo.ladder import Rung
from regimes.proof.courses import from_facts
from regimes.spec.hpo import Hpo
from regimes.spec.keys import seed_of
from regimes.spec.recipe import Recipe
from regimes.training.lane import Lane
from regimes.training.stacked import padded
from regimes.training.train import train_fleet

PART = 2  # epochs that are timed
ROUNDS = 3
MIDDLE = ("sam_rho", "label_smoothing")
ALONE = 2  # networks that are timed one by one

Seconds = dict[str, dict[str, float]]  # {batch size: {"fleet", "alone", "judged": seconds of one network}}


def timed(spec: Hpo, courses: Sequence[dict[str, Any]], lab: Lab) -> dict[str, Seconds]:
    """{course: seconds of a whole training}: the median of some rounds, all courses in turn in each."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(ROUNDS):
        for facts in courses:
            course, rung = from_facts(facts, lab, spec.recipe)
            for size in sizes(spec):
                recipe = course.recipe(spec.recipe.model_copy(update=usual(spec, size)))
                row = {"alone": _seconds(rung, recipe, Choice("eager", 1), ALONE), "judged": _judged(rung, recipe)}
                lanes = rung.choice.lanes
                row["fleet"] = row["alone"] if lanes == 1 else _seconds(rung, recipe, rung.choice, lanes)
                found.setdefault(course.name, {}).setdefault(str(size), []).append(row)
    return {name: {size: _medians(rows) for size, rows in each.items()} for name, each in found.items()}


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
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


def _seconds(rung: Rung, recipe: Recipe, choice: Choice, networks: int) -> float:
    """Of a whole training of one network, from a few epochs; of a fleet's every lane."""
    with one_thread():
        lanes = [
            Lane(rung.lab.new_model(seed_of("timed", number)), recipe, ("timed", number)) for number in range(networks)
        ]
        count = networks if choice.lanes == 1 else padded(networks, lanes[0].model)
        started = time.perf_counter()
        for _ in train_fleet(lanes, rung.lab.data, [PART], choice.engine, False, rung.lab.spec.numerics.precision):
            pass
        return (time.perf_counter() - started) / count * recipe.epochs / PART


def _judged(rung: Rung, recipe: Recipe) -> float:
    with one_thread():
        weights = rung.lab.new_model(0).state_dict()
        started = time.perf_counter()
        judge(rung.lab.model_with(weights), rung.lab.data.val, recipe)
        return time.perf_counter() - started


def idle() -> str:
    """How busy the machine was beside this."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
