"""Train some hundred settings once, on every course, every epoch judged; searches are then replayed on it.

Settings fill the space evenly (a scrambled Sobol sequence; values of a list come up equally often). The full network is
trained with two seeds, the better settings with four: one seed is what a search sees, the others say how good a setting
is. The test split is taken for that alone.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from regimes.config.hpo import WHOLE, Dimension, Hpo
from regimes.config.keys import SCHEMA, digest, seed_of
from regimes.config.recipe import Recipe
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.parent_watchdog import end_with
from regimes.experiment.store import Store
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.fidelity_trainer import VALUES
from regimes.hpo.plan import context_of
from regimes.hpo.search_space import recipe_with
from regimes.hpo.validation import validate
from regimes.research.hpo_benchmark.fidelities import RecordedFidelity, from_facts
from regimes.training.fleet import Lane, Snapshot
from regimes.training.train import train_fleet

ALONE = 8  # settings of a task where networks are trained one by one
Say = Callable[[str], None]
Setting = dict[str, Any]


def settings(space: dict[str, Dimension], count: int, seed: int = 0) -> list[Setting]:
    """Settings that fill a space evenly; ``count`` is a power of two, and a multiple of the length of each list."""
    names = sorted(space)
    points = qmc.Sobol(len(names), seed=seed).random(count)
    columns = {name: _column(name, space[name], points[:, place]) for place, name in enumerate(names)}
    return [{name: columns[name][number] for name in names} for number in range(count)]


def _column(name: str, dimension: Dimension, points: np.ndarray[Any, Any]) -> list[Any]:
    if dimension.choices is not None:
        order = np.argsort(np.argsort(points)) * len(dimension.choices) // len(points)
        return [int(dimension.choices[each]) if name in WHOLE else dimension.choices[each] for each in order]
    low, high = dimension.ends
    values = low * (high / low) ** points if dimension.log else low + (high - low) * points
    return [round(each) if name in WHOLE else float(f"{each:.6g}") for each in values]


@dataclass(frozen=True)
class RecordTask:
    """Settings that are trained together on a course.

    Attributes:
        facts: of the course and its network, as plain data.
        numbers: of the settings.
        recipes: theirs.
        seed: of the trainings.
        tested: whether they are judged on the test split, too.
    """

    facts: dict[str, Any]
    numbers: tuple[int, ...]
    recipes: tuple[Recipe, ...]
    seed: int
    tested: bool

    def key(self, place: int, context: RunContext) -> str:
        """Content key of one setting's training."""
        course, rung = from_facts(self.facts, context, self.recipes[place])
        about = {"schema": SCHEMA, "stage": "proof", "by": context.spec.numerics.id, "images": course.images}
        science = course.recipe(self.recipes[place]).science()
        return digest({**rung.context.identity, **about, "recipe": science, "at": [self.numbers[place], self.seed]})


def tasks_of(
    course: RecordedFidelity, rung: Fidelity, facts: dict[str, Any], found: Sequence[tuple[int, Recipe]], seed: int
) -> Iterator[RecordTask]:
    """The tasks of a course: fleets of one batch size where networks stack."""
    size = rung.choice.lanes if rung.choice.lanes > 1 else ALONE
    by_batch = sorted(found, key=lambda each: (each[1].batch_size, each[1].sam_rho > 0, each[0]))
    for _, group in itertools.groupby(by_batch, key=lambda each: (each[1].batch_size, each[1].sam_rho > 0)):
        members = list(group)
        for first in range(0, len(members), size):
            numbers, recipes = zip(*members[first : first + size], strict=True)
            yield RecordTask(facts, numbers, recipes, seed, course.whole)


def record(spec: Hpo, folder: Path, tasks: Sequence[RecordTask], workers: int, say: Say) -> None:
    """Do tasks, or what is left of them; what is done stands in the folder."""
    context = context_of(spec, "cpu", folder)
    left = [
        task
        for task in tasks
        if any(row_of(folder, task, place, context) is None for place in range(len(task.numbers)))
    ]
    if not left:
        return
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=end_with, initargs=(os.getpid(),)) as pool:
        for number, _ in enumerate(pool.map(_do, [(spec, folder, task) for task in left]), 1):
            if number % 10 == 0 or number == len(left):
                say(f"{number}/{len(left)} tasks, {time.monotonic() - started:.0f} s")


def row_of(folder: Path, task: RecordTask, place: int, context: RunContext) -> dict[str, Any] | None:
    """What a setting came to; None where it is not done."""
    try:
        return Store(folder).read(task.key(place, context))
    except DamagedFile:
        return None


_CONTEXTS: dict[str, RunContext] = {}


def _do(asked: tuple[Hpo, Path, RecordTask]) -> None:
    import torch

    spec, folder, task = asked
    torch.set_num_threads(1)
    context = _CONTEXTS.setdefault(str(folder), context_of(spec, "cpu", folder))
    with one_thread():
        rows = train_task(task, context)
    for place, row in enumerate(rows):
        about = {
            "kind": "proof",
            "status": "ok",
            "numerics": context.spec.numerics.id,
            "at": {"setting": task.numbers[place]},
        }
        Store(folder).write(task.key(place, context), {**about, **row})


def train_task(task: RecordTask, context: RunContext) -> list[dict[str, Any]]:
    """Train settings together; what each is judged by on the validation split after every epoch."""
    course, rung = from_facts(task.facts, context, task.recipes[0])
    recipes = [course.recipe(each) for each in task.recipes]
    lanes = [
        _lane(rung, recipe, (course.name, number, task.seed))
        for recipe, number in zip(recipes, task.numbers, strict=True)
    ]
    epochs = list(range(1, recipes[0].epochs + 1))
    rows: list[dict[str, Any]] = [{name: [] for name in VALUES} for _ in lanes]
    engine, precision = rung.engine(len(lanes)), rung.context.spec.numerics.precision
    for place, snapshot in train_fleet(lanes, rung.context.data, epochs, engine, False, precision):
        _judge(rows[place], snapshot, rung, recipes[place], task.tested and snapshot.epoch == epochs[-1])
    return rows


def _lane(rung: Fidelity, recipe: Recipe, role: tuple[str | int, ...]) -> Lane:
    role = ("proof", *role)
    return Lane(rung.context.new_model(seed_of("init", *role)), recipe, role)


def _judge(row: dict[str, Any], snapshot: Snapshot, rung: Fidelity, recipe: Recipe, tested: bool) -> None:
    """None stands for what is not finite: the training has diverged."""
    model = None if snapshot.diverged else rung.context.model_with(snapshot.weights)
    found = validate(model, rung.context.data.val, recipe) if model is not None else None
    lasting = found is not None and math.isfinite(found.loss)
    for name in VALUES:
        row[name].append(getattr(found, name) if lasting else None)
    if tested and lasting and model is not None:
        there = validate(model, rung.context.data.test, recipe)
        row.update({f"test_{name}": getattr(there, name) for name in VALUES})


def recipes_of(spec: Hpo, found: Sequence[Setting]) -> list[tuple[int, Recipe]]:
    """Settings as numbered recipes."""
    return [(number, recipe_with(spec.recipe, each)) for number, each in enumerate(found)]
