"""Train trials on rungs: proxies of many trials as one fleet, each result kept, the test split never seen."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regimes.config.keys import SCHEMA, digest, seed_of
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset, Split
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.engine_selection import EngineChoice
from regimes.experiment.store import Store
from regimes.hpo.fidelities import Fidelity, Ladder, Segment
from regimes.hpo.validation import validate
from regimes.training.fleet import PER_NETWORK_FIELDS, Lane, Snapshot
from regimes.training.train import train_fleet

VALUES = ("loss", "error", "calibrated")
MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class TrialJob:
    """One trial on its way.

    Attributes:
        recipe: the trial's own, of a full training.
        seed: names its weights and its batches.
    """

    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class FidelityResult:
    """What a stretch came to.

    Attributes:
        loss, error, calibrated: on the validation split, see `judging`; infinite where the training diverged.
        seconds: of this trial's share of the fleet.
        paid: whether they were spent now, not read from an earlier result.
        why: "diverged", "out of memory", the text of an error; "" where all is well.
    """

    loss: float
    error: float
    seconds: float
    paid: bool = True
    why: str = ""
    calibrated: float = math.inf


class FidelityTrainer:
    """Trains entries stretch by stretch.

    Args:
        context: of the full network.
        ladder: to climb.
        seed: of the study; with an entry's own it names every random number.
        folder: where results are kept, by content; None: nowhere.
    """

    def __init__(self, context: RunContext, ladder: Ladder, seed: int = 0, folder: Path | None = None) -> None:
        self.context, self.ladder, self.seed = context, ladder, seed
        self.data = blind(context.data)
        self.store = Store(folder) if folder else None
        self._snapshots: dict[tuple[int, int], Snapshot] = {}
        self._begun: dict[int, list[str]] = {}  # keys of stretches whose weights are in the store, by trial

    def run(self, entries: Sequence[TrialJob], stretch: Segment) -> list[FidelityResult]:
        """Do a stretch for some trials; those that can be stacked are trained as one."""
        found: dict[int, FidelityResult] = {}
        for number, entry in enumerate(entries):
            known = self._known(entry, stretch)
            if known is not None:
                found[number] = known
        for begun in (True, False):  # one whose weights are gone is trained from its beginning, to the same bits
            rest = [n for n in range(len(entries)) if n not in found and self._goes_on(entries[n], stretch) == begun]
            for places in alike([entries[number].recipe for number in rest]):
                numbers = [rest[place] for place in places]
                for number, value in zip(numbers, self._fleet([entries[n] for n in numbers], stretch), strict=True):
                    found[number] = value
                    self._keep(entries[number], stretch, value)
        return [found[number] for number in range(len(entries))]

    def _goes_on(self, entry: TrialJob, stretch: Segment) -> bool:
        """Whether a stretch goes on from weights that are at hand."""
        return stretch.start > 0 and (entry.seed, stretch.rung) in self._snapshots

    def forget(self, entry: TrialJob, over: bool = True) -> None:
        """Let go of what a trial would have needed to train on; for good, once it is over."""
        for key in [key for key in self._snapshots if key[0] == entry.seed]:
            del self._snapshots[key]
        if over and self.store is not None:
            for name in self._begun.pop(entry.seed, ()):
                self.store.weights_file(name).unlink(missing_ok=True)

    # -- training ---------------------------------------------------------------------------------------------------

    def _fleet(self, entries: Sequence[TrialJob], stretch: Segment) -> list[FidelityResult]:
        """Train together; one that raises, or is too large together with others, is trained alone."""
        choice = self.ladder.rungs[stretch.rung].choice
        try:
            return self._trained(entries, stretch, choice)
        except UserError:
            raise
        except Exception as error:
            why = _why(error)
        if len(entries) == 1:
            return [FidelityResult(math.inf, math.inf, 0.0, why=why)]
        middle = len(entries) // 2
        return [*self._fleet(entries[:middle], stretch), *self._fleet(entries[middle:], stretch)]

    def _trained(self, entries: Sequence[TrialJob], stretch: Segment, choice: EngineChoice) -> list[FidelityResult]:
        started = time.perf_counter()
        rung = self.ladder.rungs[stretch.rung]
        with one_thread():
            lanes = [self._lane(entry, stretch, rung) for entry in entries]
            snapshots: dict[int, Snapshot] = {}
            for first in range(0, len(lanes), choice.lanes):
                part = lanes[first : first + choice.lanes]
                engine, precision = rung.engine(len(part)), rung.context.spec.numerics.precision
                for number, snapshot in train_fleet(part, self.data, [stretch.stop], engine, False, precision):
                    snapshots[first + number] = snapshot
            values = [self._judged(rung, entries[n], stretch, snapshots[n]) for n in range(len(entries))]
        for number, (entry, value) in enumerate(zip(entries, values, strict=True)):  # all is well: go on from here
            if stretch.stop < rung.epochs and not value.why:
                self._snapshots[entry.seed, stretch.rung] = snapshots[number]
        share = (time.perf_counter() - started) / len(entries)
        return [dataclasses.replace(value, seconds=share) for value in values]

    def _lane(self, entry: TrialJob, stretch: Segment, rung: Fidelity) -> Lane:
        """A training from fresh weights, or the one that this trial has begun on this rung."""
        role = ("hpo", self.seed, entry.seed, f"{rung.density:g}")
        recipe = rung.recipe(entry.recipe).model_copy(update={"stop": stretch.stop, "last": 1})
        resume = self._snapshots[entry.seed, stretch.rung] if self._goes_on(entry, stretch) else None
        model = rung.context.new_model(seed_of("init", *role))
        return Lane(model, recipe, role, None, resume)

    def _judged(self, rung: Fidelity, entry: TrialJob, stretch: Segment, snapshot: Snapshot) -> FidelityResult:
        if snapshot.diverged:
            return FidelityResult(math.inf, math.inf, 0.0, why="diverged")
        model = rung.context.model_with(snapshot.weights)
        found = validate(model, self.data.val, entry.recipe)
        if not math.isfinite(found.loss):
            return FidelityResult(math.inf, math.inf, 0.0, why="diverged")
        return FidelityResult(found.loss, found.error, 0.0, calibrated=found.calibrated)

    # -- results that are kept --------------------------------------------------------------------------------------

    def key(self, entry: TrialJob, stretch: Segment) -> str:
        """Content key of a stretch: all that its value rests on."""
        rung = self.ladder.rungs[stretch.rung]
        science = {**rung.recipe(entry.recipe).science(), "last": 1, "stop": stretch.stop}
        role = ["hpo", self.seed, entry.seed, f"{rung.density:g}"]
        about = {
            "schema": SCHEMA,
            "stage": "hpo",
            "values": list(VALUES),
            "recipe": science,
            "role": role,
            "by": self.context.spec.numerics.id,
        }
        return digest({**rung.context.identity, **about, "recipe": science, "role": role})

    def _known(self, entry: TrialJob, stretch: Segment) -> FidelityResult | None:
        """A result of an earlier command, with the weights to train on from where they are still kept."""
        if self.store is None:
            return None
        key = self.key(entry, stretch)
        try:
            record = self.store.read(key)
        except DamagedFile:
            return None
        if record is None:
            return None
        if stretch.stop < self.ladder.rungs[stretch.rung].epochs and not record["why"]:
            with contextlib.suppress(DamagedFile):  # of a trial that was over
                self._snapshots[entry.seed, stretch.rung] = _unpacked(stretch.stop, self.store.weights(key))
                self._begun.setdefault(entry.seed, []).append(key)
        loss, error, calibrated = (math.inf if record.get(name) is None else record[name] for name in VALUES)
        return FidelityResult(loss, error, record["seconds"], False, record["why"], calibrated)

    def _keep(self, entry: TrialJob, stretch: Segment, value: FidelityResult) -> None:
        if self.store is None or value.why not in ("", "diverged"):
            return  # memory may suffice another time
        finite = math.isfinite(value.loss)
        snapshot = self._snapshots.get((entry.seed, stretch.rung))
        going_on = snapshot is not None and snapshot.epoch == stretch.stop
        record: dict[str, Any] = {
            "kind": "hpo",
            "status": value.why or "ok",
            **{name: getattr(value, name) if finite else None for name in VALUES},
            "seconds": value.seconds,
            "why": value.why,
            "numerics": self.context.spec.numerics.id,
            "at": {"density": self.ladder.rungs[stretch.rung].density, "epoch": stretch.stop, "trial": entry.seed},
        }
        key = self.key(entry, stretch)
        if going_on:
            self._begun.setdefault(entry.seed, []).append(key)
        self.store.write(key, record, _packed(snapshot) if going_on and snapshot else None)


def blind(data: Dataset) -> Dataset:
    """The data without its test split: a search never sees it. (One validation image stands in its place.)"""
    return dataclasses.replace(data, test=Split(data.val.inputs[:1], data.val.targets[:1]))


def alike(recipes: Sequence[Recipe]) -> Iterator[list[int]]:
    """Places of recipes that can be trained in lock-step: equal but for what lanes may differ in."""
    groups: dict[Recipe, list[int]] = {}
    for place, recipe in enumerate(recipes):
        same = {name: Recipe.model_fields[name].default for name in PER_NETWORK_FIELDS}
        groups.setdefault(recipe.model_copy(update=same), []).append(place)
    # With SAM and without are two kinds of steps.
    for places in groups.values():
        for sharp in (False, True):
            part = [place for place in places if (recipes[place].sam_rho > 0) == sharp]
            if part:
                yield part


def _why(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(each in text.lower() for each in MEMORY):
        return "out of memory"
    return f"{type(error).__name__}: {text}"


def _packed(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    return {**snapshot.weights, **{f"momentum/{name}": each for name, each in snapshot.momentum.items()}}


def _unpacked(epoch: int, tensors: dict[str, torch.Tensor]) -> Snapshot:
    momentum = {name.removeprefix("momentum/"): each for name, each in tensors.items() if name.startswith("momentum/")}
    return Snapshot(epoch, {name: each for name, each in tensors.items() if not name.startswith("momentum/")}, momentum)
