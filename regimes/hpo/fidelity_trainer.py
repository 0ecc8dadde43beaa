"""Training of trials on the fidelities: proxies of many trials as one fleet, every result stored by content."""

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
from regimes.device_faults import reraise_device_fault
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
OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class TrialJob:
    """Training job of one trial.

    Attributes:
        recipe: the trial's recipe for the full network.
        seed: seed of its weights and batches.
    """

    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class FidelityResult:
    """Result of a segment.

    Attributes:
        loss, error, calibrated: values on the validation split, see `Validation`; infinite if the training diverged, or
            the value is not finite.
        seconds: this trial's share of the fleet's training time.
        paid: whether the seconds were spent now, not read from an earlier result.
        why: "diverged", "out of memory" or the text of an error; "" if the segment succeeded.
    """

    loss: float
    error: float
    seconds: float
    paid: bool = True
    why: str = ""
    calibrated: float = math.inf


class FidelityTrainer:
    """Trains trials segment by segment. The test split is not available to it.

    Args:
        context: the full network's data, model and device.
        ladder: the fidelities.
        seed: seed of the study; with a job's seed it determines every random number.
        folder: folder for results, stored by content; None: results are not stored.
    """

    def __init__(self, context: RunContext, ladder: Ladder, seed: int = 0, folder: Path | None = None) -> None:
        self.context, self.ladder, self.seed = context, ladder, seed
        self.store = Store(folder) if folder else None
        self._snapshots: dict[tuple[int, int], Snapshot] = {}
        self._begun: dict[int, list[str]] = {}  # trial's seed -> keys of segments with stored weights

    def data_of(self, rung: Fidelity) -> Dataset:
        """Return the data on which a fidelity is trained and validated, without the test split."""
        return without_test_split(rung.context.data)

    def run(self, jobs: Sequence[TrialJob], segment: Segment) -> list[FidelityResult]:
        """Train a segment for some trials, those that can be stacked as one fleet; returns a result per job."""
        found: dict[int, FidelityResult] = {}
        for number, job in enumerate(jobs):
            known = self._known(job, segment)
            if known is not None:
                found[number] = known
        for begun in (True, False):  # a job whose weights are gone restarts from epoch 0, with the same result
            rest = [n for n in range(len(jobs)) if n not in found and self._goes_on(jobs[n], segment) == begun]
            for places in stackable_groups([jobs[number].recipe for number in rest]):
                numbers = [rest[place] for place in places]
                for number, value in zip(numbers, self._fleet([jobs[n] for n in numbers], segment), strict=True):
                    found[number] = value
                    self._keep(jobs[number], segment, value)
        return [found[number] for number in range(len(jobs))]

    def _goes_on(self, job: TrialJob, segment: Segment) -> bool:
        """Whether a segment continues from weights in memory."""
        return segment.start > 0 and (job.seed, segment.rung) in self._snapshots

    def forget(self, job: TrialJob, over: bool = True) -> None:
        """Drop a trial's snapshots; if it is over, delete its stored weights as well."""
        for key in [key for key in self._snapshots if key[0] == job.seed]:
            del self._snapshots[key]
        if over and self.store is not None:
            for name in self._begun.pop(job.seed, ()):
                self.store.weights_file(name).unlink(missing_ok=True)

    # -- training ---------------------------------------------------------------------------------------------------

    def _fleet(self, jobs: Sequence[TrialJob], segment: Segment) -> list[FidelityResult]:
        """Train jobs together; after an error or out of memory, in halves, down to single jobs."""
        choice = self.ladder.rungs[segment.rung].choice
        try:
            return self._trained(jobs, segment, choice)
        except UserError:
            raise
        except Exception as error:
            reraise_device_fault(error)
            why = _why(error)
        if len(jobs) == 1:
            return [FidelityResult(math.inf, math.inf, 0.0, why=why)]
        middle = len(jobs) // 2
        return [*self._fleet(jobs[:middle], segment), *self._fleet(jobs[middle:], segment)]

    def _trained(self, jobs: Sequence[TrialJob], segment: Segment, choice: EngineChoice) -> list[FidelityResult]:
        started = time.perf_counter()
        rung = self.ladder.rungs[segment.rung]
        data = self.data_of(rung)
        with one_thread():
            lanes = [self._lane(job, segment, rung) for job in jobs]
            snapshots: dict[int, Snapshot] = {}
            for first in range(0, len(lanes), choice.lanes):
                part = lanes[first : first + choice.lanes]
                engine, precision = rung.engine(len(part)), rung.context.spec.numerics.precision
                for number, snapshot in train_fleet(part, data, [segment.stop], engine, False, precision):
                    snapshots[first + number] = snapshot
            values = [self._judged(rung, jobs[n], segment, snapshots[n]) for n in range(len(jobs))]
        for number, (job, value) in enumerate(zip(jobs, values, strict=True)):  # state to continue from
            if segment.stop < rung.epochs and not value.why:
                self._snapshots[job.seed, segment.rung] = snapshots[number]
        share = (time.perf_counter() - started) / len(jobs)
        return [dataclasses.replace(value, seconds=share) for value in values]

    def _lane(self, job: TrialJob, segment: Segment, rung: Fidelity) -> Lane:
        """A training from fresh weights, or the continuation of this trial's training of the same fidelity."""
        role = ("hpo", self.seed, job.seed, rung.name)
        recipe = rung.recipe(job.recipe).model_copy(update={"stop": segment.stop, "last": 1})
        resume = self._snapshots[job.seed, segment.rung] if self._goes_on(job, segment) else None
        model = rung.context.new_model(seed_of("init", *role))
        return Lane(model, recipe, role, None, resume)

    def _judged(self, rung: Fidelity, job: TrialJob, segment: Segment, snapshot: Snapshot) -> FidelityResult:
        if snapshot.diverged:
            return FidelityResult(math.inf, math.inf, 0.0, why="diverged")
        model = rung.context.model_with(snapshot.weights)
        found = validate(model, self.context.data.val, job.recipe)
        if not math.isfinite(found.loss):
            return FidelityResult(math.inf, math.inf, 0.0, why="diverged")
        error, calibrated = (each if math.isfinite(each) else math.inf for each in (found.error, found.calibrated))
        return FidelityResult(found.loss, error, 0.0, calibrated=calibrated)

    # -- stored results ---------------------------------------------------------------------------------------------

    def key(self, job: TrialJob, segment: Segment) -> str:
        """Return the content key of a segment: a hash of everything that its result depends on."""
        rung = self.ladder.rungs[segment.rung]
        science = {**rung.recipe(job.recipe).key_fields(), "last": 1, "stop": segment.stop}
        role = ["hpo", self.seed, job.seed, rung.name]
        about = {
            "schema": SCHEMA,
            "stage": "hpo",
            "values": list(VALUES),
            "recipe": science,
            "role": role,
            "by": self.context.spec.numerics.id,
        }
        return digest({**rung.context.identity, **about, "recipe": science, "role": role})

    def _known(self, job: TrialJob, segment: Segment) -> FidelityResult | None:
        """A stored result, with the weights to continue from if they are still stored."""
        if self.store is None:
            return None
        key = self.key(job, segment)
        try:
            record = self.store.read(key)
        except DamagedFile:
            return None
        if record is None:
            return None
        if segment.stop < self.ladder.rungs[segment.rung].epochs and not record["why"]:
            with contextlib.suppress(DamagedFile):  # deleted when the trial was over
                self._snapshots[job.seed, segment.rung] = _unpacked(segment.stop, self.store.weights(key))
                self._begun.setdefault(job.seed, []).append(key)
        loss, error, calibrated = (math.inf if record.get(name) is None else record[name] for name in VALUES)
        return FidelityResult(loss, error, record["seconds"], False, record["why"], calibrated)

    def _keep(self, job: TrialJob, segment: Segment, value: FidelityResult) -> None:
        if self.store is None or value.why not in ("", "diverged"):
            return  # out of memory may not happen again
        found, rung = {name: getattr(value, name) for name in VALUES}, self.ladder.rungs[segment.rung]
        snapshot = self._snapshots.get((job.seed, segment.rung))
        going_on = snapshot is not None and snapshot.epoch == segment.stop
        record: dict[str, Any] = {
            "kind": "hpo",
            "status": value.why or "ok",
            **{name: each if math.isfinite(each) else None for name, each in found.items()},
            "seconds": value.seconds,
            "why": value.why,
            "numerics": self.context.spec.numerics.id,
            "at": {"density": rung.density, "epoch": segment.stop, "trial": job.seed},
        }
        key = self.key(job, segment)
        if going_on:
            self._begun.setdefault(job.seed, []).append(key)
        self.store.write(key, record, _packed(snapshot) if going_on and snapshot else None)


def without_test_split(data: Dataset) -> Dataset:
    """Return the data with the test split replaced by one validation image, so that a search cannot use it."""
    return dataclasses.replace(data, test=Split(data.val.inputs[:1], data.val.targets[:1]))


def stackable_groups(recipes: Sequence[Recipe]) -> Iterator[list[int]]:
    """Yield the indices of recipes that differ only in `PER_NETWORK_FIELDS`, with and without SAM apart."""
    groups: dict[Recipe, list[int]] = {}
    for place, recipe in enumerate(recipes):
        same = {name: Recipe.model_fields[name].default for name in PER_NETWORK_FIELDS}
        groups.setdefault(recipe.model_copy(update=same), []).append(place)
    for places in groups.values():
        for sharp in (False, True):
            part = [place for place in places if (recipes[place].sam_rho > 0) == sharp]
            if part:
                yield part


def _why(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if out_of_memory or any(part in text.lower() for part in OUT_OF_MEMORY_TEXTS):
        return "out of memory"
    return f"{type(error).__name__}: {text}"


def _packed(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    return {**snapshot.weights, **{f"momentum/{name}": each for name, each in snapshot.momentum.items()}}


def _unpacked(epoch: int, tensors: dict[str, torch.Tensor]) -> Snapshot:
    momentum = {name.removeprefix("momentum/"): each for name, each in tensors.items() if name.startswith("momentum/")}
    return Snapshot(epoch, {name: each for name, each in tensors.items() if not name.startswith("momentum/")}, momentum)
