"""Record the table: train several hundred settings at every fidelity and validate them after every epoch.

Settings fill the space evenly (a scrambled Sobol sequence; list values occur equally often). The full network is
trained with two seeds per setting, four for the better settings: a search sees one of them, the others estimate the
setting's test error. The test split is used for that only.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from regimes.config.hpo import INTEGERS, Dimension, Hpo
from regimes.config.keys import SCHEMA, digest, seed_of
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.parent_watchdog import exit_with_parent
from regimes.experiment.store import Store
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.fidelity_trainer import VALUES
from regimes.hpo.plan import context_of
from regimes.hpo.search_space import recipe_with
from regimes.hpo.validation import validate
from regimes.research.hpo_benchmark.fidelities import RecordedFidelity, from_facts
from regimes.research.hpo_benchmark.table import VARIABLES, SearchTable, open_table
from regimes.research.page import Say
from regimes.training.fleet import Lane, Snapshot
from regimes.training.train import train_fleet

SETTINGS_PER_TASK = 8  # where networks are trained one by one
Setting = dict[str, Any]
Row = dict[str, Any]


def settings(space: dict[str, Dimension], count: int, seed: int = 0) -> list[Setting]:
    """Return settings that fill a space evenly.

    Args:
        space: search space.
        count: a power of two and a multiple of the length of each list of choices.
        seed: seed of the Sobol sequence.
    """
    names = sorted(space)
    points = qmc.Sobol(len(names), seed=seed).random(count)
    columns = {name: _column(name, space[name], points[:, place]) for place, name in enumerate(names)}
    return [{name: columns[name][number] for name in names} for number in range(count)]


def _column(name: str, dimension: Dimension, points: np.ndarray[Any, Any]) -> list[Any]:
    if dimension.choices is not None:
        order = np.argsort(np.argsort(points)) * len(dimension.choices) // len(points)
        return [int(dimension.choices[each]) if name in INTEGERS else dimension.choices[each] for each in order]
    low, high = dimension.ends
    values = low * (high / low) ** points if dimension.log else low + (high - low) * points
    return [round(each) if name in INTEGERS else float(f"{each:.6g}") for each in values]


@dataclass(frozen=True)
class RecordTask:
    """Settings that are trained together at one fidelity.

    Attributes:
        facts: the fidelity and its networks as plain data.
        numbers: indices of the settings.
        recipes: recipes of the settings.
        seed: seed of the trainings.
        tested: whether they are evaluated on the test split as well.
    """

    facts: dict[str, Any]
    numbers: tuple[int, ...]
    recipes: tuple[Recipe, ...]
    seed: int
    tested: bool

    def key(self, place: int, context: RunContext) -> str:
        """Return the content key of one setting's training."""
        fidelity, built = from_facts(self.facts, context, self.recipes[place])
        about = {"schema": SCHEMA, "stage": "proof", "by": context.spec.numerics.id, "images": fidelity.images}
        science = fidelity.recipe(self.recipes[place]).key_fields()
        return digest({**built.context.identity, **about, "recipe": science, "at": [self.numbers[place], self.seed]})


def tasks_of(
    fidelity: RecordedFidelity, built: Fidelity, facts: dict[str, Any], found: Sequence[tuple[int, Recipe]], seed: int
) -> Iterator[RecordTask]:
    """Divide settings into tasks: fleets of one batch size where networks can be stacked."""
    size = built.choice.lanes if built.choice.lanes > 1 else SETTINGS_PER_TASK
    by_batch = sorted(found, key=lambda each: (each[1].batch_size, each[1].sam_rho > 0, each[0]))
    for _, group in itertools.groupby(by_batch, key=lambda each: (each[1].batch_size, each[1].sam_rho > 0)):
        members = list(group)
        for first in range(0, len(members), size):
            numbers, recipes = zip(*members[first : first + size], strict=True)
            yield RecordTask(facts, numbers, recipes, seed, fidelity.is_full)


def record(spec: Hpo, folder: Path, tasks: Sequence[RecordTask], workers: int, say: Say) -> None:
    """Run the tasks whose results are not yet in the folder."""
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
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=exit_with_parent, initargs=(os.getpid(),)) as pool:
        for number, _ in enumerate(pool.map(_do, [(spec, folder, task) for task in left]), 1):
            if number % 10 == 0 or number == len(left):
                say(f"{number}/{len(left)} tasks, {time.monotonic() - started:.0f} s")


def row_of(folder: Path, task: RecordTask, place: int, context: RunContext) -> dict[str, Any] | None:
    """Return the stored result of a setting; None if there is none."""
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
    """Train the settings of a task together; return their validation values after every epoch."""
    fidelity, built = from_facts(task.facts, context, task.recipes[0])
    recipes = [fidelity.recipe(each) for each in task.recipes]
    lanes = [
        _lane(built, recipe, (fidelity.name, number, task.seed))
        for recipe, number in zip(recipes, task.numbers, strict=True)
    ]
    epochs = list(range(1, recipes[0].epochs + 1))
    rows: list[dict[str, Any]] = [{name: [] for name in VALUES} for _ in lanes]
    engine, precision = built.engine(len(lanes)), built.context.spec.numerics.precision
    for place, snapshot in train_fleet(lanes, built.context.data, epochs, engine, False, precision):
        _judge(rows[place], snapshot, built, recipes[place], task.tested and snapshot.epoch == epochs[-1])
    return rows


def _lane(built: Fidelity, recipe: Recipe, role: tuple[str | int, ...]) -> Lane:
    role = ("proof", *role)
    return Lane(built.context.new_model(seed_of("init", *role)), recipe, role)


def _judge(row: dict[str, Any], snapshot: Snapshot, built: Fidelity, recipe: Recipe, tested: bool) -> None:
    """Append the validation values of a snapshot; None for a diverged training."""
    model = None if snapshot.diverged else built.context.model_with(snapshot.weights)
    found = validate(model, built.context.data.val, recipe) if model is not None else None
    lasting = found is not None and math.isfinite(found.loss)
    for name in VALUES:
        row[name].append(getattr(found, name) if lasting else None)
    if tested and lasting and model is not None:
        test = validate(model, built.context.data.test, recipe)
        row.update({f"test_{name}": getattr(test, name) for name in VALUES})


def recipes_of(spec: Hpo, found: Sequence[Setting]) -> list[tuple[int, Recipe]]:
    """Return the settings as numbered recipes."""
    return [(number, recipe_with(spec.recipe, each)) for number, each in enumerate(found)]


@dataclass(frozen=True)
class ExistingRows:
    """Results of an existing table that a new recording adds to.

    Attributes:
        table: the existing table; None if there is none.
    """

    table: SearchTable | None = None

    @classmethod
    def of(cls, path: Path, settings: Sequence[Mapping[str, Any]]) -> ExistingRows:
        """Read the table at a path, if there is one.

        Raises:
            UserError: the file is not a table, or one of other settings.
        """
        if not path.is_file():
            return cls()
        table = open_table(path)
        if table.settings != list(settings):
            raise UserError(f"{path}: a recording of other settings; use another --out or remove the file")
        return cls(table)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the table; empty if there is none."""
        return self.table.facts if self.table else {}

    @property
    def fidelities(self) -> list[dict[str, Any]]:
        """Fidelities of the table with their networks, without those of shifted settings."""
        plain = [each for each in self.facts.get("courses", ()) if not each["course"]["shift"]]
        return [{**each, "made": self.facts["made"][each["course"]["name"]]} for each in plain]

    def shifted(self, name: str) -> dict[str, Any] | None:
        """Return the fidelity with settings shifted by the estimated factors; None if the table lacks it."""
        found = [each for each in self.facts.get("courses", ()) if each["course"]["name"] == f"{name}, shifted"]
        return {**found[0], "made": self.facts["made"][f"{name}, shifted"]} if found else None

    def seconds(self, names: Sequence[str]) -> dict[str, Any] | None:
        """Return the measured seconds; None if one of the fidelities was not timed."""
        if self.table is None or not set(names) <= set(self.facts["seconds"]):
            return None
        return {name: self.facts[name] for name in ("seconds", "beside")}

    def rows(self, fidelity: RecordedFidelity, numbers: Sequence[int], seed: int) -> dict[int, Row] | None:
        """Return {setting: result} of a fidelity; None if the table lacks one of the settings.

        Values have the file's single precision.
        """
        if self.table is None or fidelity.name not in self.table.positions:
            return None
        place = self.table.positions[fidelity.name]
        if np.isnan(self.table.arrays["loss"][place, list(numbers), seed, -1]).any():
            return None
        return {number: self._row(place, number, seed) for number in numbers}

    def _row(self, place: int, number: int, seed: int) -> Row:
        """Result of one setting; None for values that are not finite."""
        assert self.table is not None
        found = {name: self.table.arrays[name][place, number, seed] for name in VARIABLES}
        row: Row = {name: [float(each) if np.isfinite(each) else None for each in found[name]] for name in VALUES}
        row.update({name: float(each) for name, each in found.items() if name not in VALUES and np.isfinite(each)})
        return row
