"""Stage 1: training of dense networks; snapshots at several epochs share one training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regimes.config.keys import SCHEMA, digest, seed_of
from regimes.config.recipe import Recipe
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.context import RunContext
from regimes.experiment.stages.stage import Coordinates, Outcome, Report, bisect_on_failure, record_of, value
from regimes.experiment.store import Store
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Variable
from regimes.training import train as training
from regimes.training.schedule import TrainingSchedule

VARIABLES = {
    "test_error": Variable("1", "test error, mean of the last epochs", error=True),
    "val_error": Variable("1", "validation error, mean of the last epochs", error=True),
}


@dataclass(frozen=True)
class TrainStage:
    """A dense network at one temperature and epoch.

    Stages that differ only in ``epoch`` are snapshots of one training, whose key is `training`.

    Attributes:
        identity: data and model; see `RunContext.identity`.
        recipe: the recipe of the training.
        seed: the dense seed.
        coords: {knob: value, "dense_seed": seed}.
        images: (train, val, test) counts, for time estimates.
        intermediate: whether only its weights are needed (for rewinding), not its values.
    """

    identity: dict[str, Any]
    recipe: Recipe
    seed: int
    coords: Coordinates
    images: tuple[int, int, int]
    intermediate: bool = False

    kind = "train"
    needs = ()

    @cached_property
    def training(self) -> str:
        """The key of the training, independent of the epoch."""
        return digest(
            {**self.identity, "schema": SCHEMA, "stage": "train", "recipe": self.recipe.key_fields(), "seed": self.seed}
        )

    @property
    def epoch(self) -> int:
        """The epoch of the snapshot."""
        return self.recipe.stop or self.recipe.epochs

    @property
    def key(self) -> str:
        """The key of the training, and the epoch."""
        return f"{self.training}-e{self.epoch}"

    @property
    def cost(self) -> float:
        """The cost from the first step; less if an earlier snapshot exists."""
        return training_cost(self.recipe, self.images, evaluated=self.epoch)

    def describe(self) -> dict[str, Any]:
        """Return the description that the key is a hash of."""
        return {**self.identity, "schema": SCHEMA, "recipe": self.recipe.model_dump(), "seed": self.seed}


def training_cost(recipe: Recipe, images: tuple[int, int, int], evaluated: int) -> float:
    """Return the cost of a training in forward passes of one image: three per step and image, six with SAM; and
    evaluation."""
    timeline = TrainingSchedule(recipe, images[0])
    steps = timeline.last_epoch * timeline.steps_per_epoch
    return steps * recipe.batch_size * (6 if recipe.sam_rho else 3) + evaluated * (images[1] + images[2])


def train(fleet: Sequence[TrainStage], context: RunContext, store: Store, report: Report) -> None:
    """Train the networks of a fleet up to their snapshots, each from the latest earlier snapshot in the store.

    Networks that start at the same epoch and have the same snapshots are trained together.
    """
    trainings: dict[str, dict[int, TrainStage]] = {}
    for stage in sorted(fleet, key=lambda stage: stage.epoch):
        trainings.setdefault(stage.training, {})[stage.epoch] = stage
    starts: dict[tuple[int, ...], list[tuple[dict[int, TrainStage], training.Snapshot | None]]] = {}
    for stages in trainings.values():
        nearest = _nearest(next(iter(stages.values())), store)
        starts.setdefault((nearest.epoch if nearest else 0, *stages), []).append((stages, nearest))
    for group in starts.values():
        bisect_on_failure(
            group,
            lambda member: list(member[0].values()),
            lambda members, done: _train_together(members, context, store, done),
            store,
            report,
        )


def _train_together(
    group: Sequence[tuple[dict[int, TrainStage], training.Snapshot | None]],
    context: RunContext,
    store: Store,
    done: Report,
) -> None:
    if not group:
        return
    started = time.perf_counter()
    lanes = []
    for stages, nearest in group:
        first = next(iter(stages.values()))
        model = context.new_model(seed_of("init", first.seed))
        lanes.append(training.Lane(model, first.recipe, ("dense", first.seed), resume=nearest))
    epochs = list(group[0][0])
    passed: dict[int, float] = {}
    numerics = context.spec.numerics
    trained = training.train_fleet(lanes, context.data, epochs, numerics.dense, precision=numerics.precision)
    for lane, snapshot in trained:
        stage = group[lane][0][snapshot.epoch]
        values = last_epochs(snapshot.history, stage.recipe, context, snapshot.diverged)
        since = max((at for epoch, at in passed.items() if epoch < snapshot.epoch), default=started)
        record = record_of(stage, context, since, values, share=len(lanes), history=snapshot.history)
        if snapshot.diverged:
            store.write(stage.key, {**record, "status": "diverged"})
        else:
            momentum = {f"momentum/{name}": buffer for name, buffer in snapshot.momentum.items()}
            store.write(stage.key, record, {**snapshot.weights, **momentum})
        passed[snapshot.epoch] = time.perf_counter()
        done(Outcome(stage.key))


def last_epochs(history: Sequence[training.Row], recipe: Recipe, context: RunContext, diverged: bool) -> dict[str, Any]:
    """Return the mean test and validation error of the last epochs, with binomial standard errors.

    Of several predictions per input, which are not independent, the standard error is NaN.
    """
    last = recipe.last
    values = {}
    for name, variable in VARIABLES.items():
        split = getattr(context.loaded, name.removesuffix("_error"))
        errors = [row[name] for row in history[-last:] if name in row]
        if diverged or not errors:
            estimate = Estimate(float("nan"), float("nan"), 0)
        else:
            mean = sum(errors) / len(errors)
            images = len(split.targets)
            single = context.fraction(recipe) and context.predictions(recipe) == 1
            stderr = (mean * (1 - mean) / images) ** 0.5 if single else float("nan")
            estimate = Estimate(mean, stderr, images)
        values[name] = value(estimate, context.with_units(variable, recipe))
    return values


def _nearest(first: TrainStage, store: Store) -> training.Snapshot | None:
    """The latest intact snapshot of this training before its first pending one."""
    found = (store.folder / "records" / first.key[:2]).glob(f"{first.training}-e*.json")
    numbers = (path.stem.rpartition("-e")[2] for path in found)
    epochs = sorted((int(number) for number in numbers if number.isdigit()), reverse=True)
    for epoch in (each for each in epochs if each < first.epoch):
        key = f"{first.training}-e{epoch}"
        try:
            record, tensors = store.read(key), store.weights(key)
        except DamagedFile:
            continue
        if record is not None:
            momentum = {n.removeprefix("momentum/"): t for n, t in tensors.items() if n.startswith("momentum/")}
            weights = {n: t for n, t in tensors.items() if not n.startswith("momentum/")}
            return training.Snapshot(epoch, weights, momentum, record["history"])
    return None
