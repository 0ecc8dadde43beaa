"""Stage 1: train dense networks; one training per (temperature, seed) serves every snapshot, density and metric."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from regimes.flow.files import Damaged
from regimes.flow.lab import Lab
from regimes.flow.stage import Coordinates, Outcome, Report, attempt, record_of, value
from regimes.flow.store import Store
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Variable
from regimes.spec.keys import SCHEMA, digest, seed_of
from regimes.spec.recipe import Recipe
from regimes.training import train as training
from regimes.training.timeline import Timeline

VARIABLES = {
    "test_error": Variable("1", "test error, mean of the last epochs"),
    "val_error": Variable("1", "validation error, mean of the last epochs"),
}


@dataclass(frozen=True)
class Train:
    """A dense network at one temperature, stopped at one epoch.

    Stages that differ only in ``epoch`` are snapshots of one training, whose key is `training`.

    Attributes:
        identity: data and model; see `Lab.identity`.
        recipe: of the dense network.
        seed: the dense seed.
        at: {knob: value, "dense_seed": seed}.
        images: (train, val, test) counts, for the estimate of time.
    """

    identity: dict[str, Any]
    recipe: Recipe
    seed: int
    at: Coordinates
    images: tuple[int, int, int]

    kind = "train"
    needs = ()

    @cached_property
    def training(self) -> str:
        """The key of the whole training, whichever epoch it is stopped at."""
        return digest(
            {**self.identity, "schema": SCHEMA, "stage": "train", "recipe": self.recipe.science(), "seed": self.seed}
        )

    @property
    def epoch(self) -> int:
        """The epoch at which the network is taken."""
        return self.recipe.stop or self.recipe.epochs

    @property
    def key(self) -> str:
        """The training and the epoch."""
        return f"{self.training}-e{self.epoch}"

    @property
    def work(self) -> float:
        """Of the whole way from the first step; less where an earlier snapshot is at hand."""
        return training_work(self.recipe, self.images, evaluated=self.epoch)

    def describe(self) -> dict[str, Any]:
        """All that the key rests on."""
        return {**self.identity, "schema": SCHEMA, "recipe": self.recipe.model_dump(), "seed": self.seed}


def training_work(recipe: Recipe, images: tuple[int, int, int], evaluated: int) -> float:
    """Forward passes of one image that a training takes: three per image and step, six with SAM, and evaluation."""
    timeline = Timeline(recipe, images[0])
    steps = timeline.last_epoch * timeline.steps_per_epoch
    return steps * recipe.batch_size * (6 if recipe.sam_rho else 3) + evaluated * (images[1] + images[2])


def train(fleet: Sequence[Train], lab: Lab, store: Store, report: Report) -> None:
    """Train the one network whose snapshots the fleet asks for, from the nearest snapshot that is already there."""
    stages = {stage.epoch: stage for stage in sorted(fleet, key=lambda stage: stage.epoch)}
    first = next(iter(stages.values()))
    started = time.perf_counter()
    with attempt(fleet, store, report) as done:
        model = lab.new_model(seed_of("init", first.seed))
        snapshots = training.train(
            model, lab.data, first.recipe, ("dense", first.seed), list(stages), resume=_nearest(first, store)
        )
        for snapshot in snapshots:
            stage = stages[snapshot.epoch]
            store.write(stage.key, *_outcome(stage, lab, snapshot, started))
            done(Outcome(stage.key))
            started = time.perf_counter()


def _outcome(
    stage: Train, lab: Lab, snapshot: training.Snapshot, started: float
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    values = last_epochs(snapshot.history, stage.recipe.last, lab, snapshot.diverged)
    record = record_of(stage, lab, started, values, history=snapshot.history)
    if snapshot.diverged:
        return {**record, "status": "diverged"}, None
    momentum = {f"momentum/{name}": buffer for name, buffer in snapshot.momentum.items()}
    return record, {**snapshot.weights, **momentum}


def last_epochs(history: Sequence[training.Row], last: int, lab: Lab, diverged: bool) -> dict[str, Any]:
    """Mean test and validation error of the last epochs, with the standard error that the images give it."""
    values = {}
    for name, variable in VARIABLES.items():
        split = getattr(lab.loaded, name.removesuffix("_error"))
        errors = [row[name] for row in history[-last:] if name in row]
        if diverged or not errors:
            estimate = Estimate(float("nan"), float("nan"), 0)
        else:
            mean = sum(errors) / len(errors)
            images = len(split.targets)
            estimate = Estimate(mean, (mean * (1 - mean) / images) ** 0.5, images)
        values[name] = value(estimate, variable)
    return values


def _nearest(first: Train, store: Store) -> training.Snapshot | None:
    """The latest sound snapshot of this training before the first epoch asked for."""
    found = (store.folder / "records" / first.key[:2]).glob(f"{first.training}-e*.json")
    epochs = sorted((int(path.stem.rpartition("-e")[2]) for path in found), reverse=True)
    for epoch in (each for each in epochs if each < first.epoch):
        key = f"{first.training}-e{epoch}"
        try:
            record, tensors = store.read(key), store.weights(key)
        except Damaged:
            continue
        if record is not None:
            momentum = {n.removeprefix("momentum/"): t for n, t in tensors.items() if n.startswith("momentum/")}
            weights = {n: t for n, t in tensors.items() if not n.startswith("momentum/")}
            return training.Snapshot(epoch, weights, momentum, record["history"])
    return None
