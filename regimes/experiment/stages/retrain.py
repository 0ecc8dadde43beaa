"""Stage 3: retraining of a pruned network; copies differ in data order and augmentation only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regimes.config.keys import SCHEMA, digest, seed_of
from regimes.config.recipe import Recipe
from regimes.experiment.context import RunContext, stored_mask
from regimes.experiment.stages.discover import DiscoverStage
from regimes.experiment.stages.pretrained import PretrainedStage
from regimes.experiment.stages.prune import PruneStage, Retrained
from regimes.experiment.stages.stage import (
    Coordinates,
    Outcome,
    Report,
    attempt,
    bisect_on_failure,
    is_diverged,
    record_of,
)
from regimes.experiment.stages.train import TrainStage, last_epochs, training_cost
from regimes.experiment.store import Store
from regimes.training import train as training


@dataclass(frozen=True)
class RetrainStage:
    """One retrained copy of a pruned network.

    Attributes:
        pruned: the pruned network.
        recipe: the retraining recipe, the same at every temperature.
        seed: the retrain seed; the round's number in an intermediate round, which all copies share.
    """

    pruned: PruneStage | DiscoverStage
    recipe: Recipe
    seed: int

    kind = "retrain"

    @property
    def intermediate(self) -> bool:
        """Whether this belongs to an intermediate round."""
        return self.pruned.intermediate

    @cached_property
    def key(self) -> str:
        """Hash of the pruned network's key, the recipe and the seed."""
        return digest(self.describe())

    @property
    def needs(self) -> tuple[Any, ...]:
        """The network that was pruned or that it is rewound to, and the mask."""
        return (*((start,) if (start := self.start) is not None else ()), self.pruned)

    @property
    def start(self) -> TrainStage | PretrainedStage | Retrained | None:
        """The network whose weights are retrained; None: a smaller network's own weights, or initial ones."""
        load = self.pruned.load
        if load.structured or load.rewind == 0:
            return None
        return self.pruned.rewound or self.pruned.after or self.pruned.dense

    @property
    def coords(self) -> Coordinates:
        """The pruned network's coordinates, and the retrain seed."""
        return self.pruned.coords if self.intermediate else {**self.pruned.coords, "retrain_seed": self.seed}

    @property
    def cost(self) -> float:
        """The cost of the whole recipe; only the last epochs are evaluated."""
        return training_cost(self.recipe, self.pruned.dense.images, evaluated=self.recipe.last)

    def describe(self) -> dict[str, Any]:
        """Return the description that the key is a hash of."""
        recipe = self.recipe.key_fields()
        described = {
            "schema": SCHEMA,
            "stage": "retrain",
            "pruned": self.pruned.key,
            "recipe": recipe,
            "seed": self.seed,
        }
        described |= {"round": True} if self.intermediate else {}  # it has its own random numbers
        rewind = self.pruned.load.rewind
        return described if rewind is None else {**described, "rewind": rewind}


def retrain(fleet: Sequence[RetrainStage], context: RunContext, store: Store, report: Report) -> None:
    """Retrain the copies of a fleet together; one whose dense network diverged is not trained."""
    sound = []
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            if is_diverged(stage.pruned, store):
                _keep(stage, training.Snapshot(0, {}, {}, diverged=True), context, store, started)
                done(Outcome(stage.key))
            else:
                sound.append(stage)
    bisect_on_failure(
        sound,
        lambda stage: [stage],
        lambda stages, done: _retrain_together(stages, context, store, done),
        store,
        report,
    )


def _retrain_together(stages: Sequence[RetrainStage], context: RunContext, store: Store, done: Report) -> None:
    if not stages:
        return
    started = time.perf_counter()
    lanes = [_lane(stage, context, store) for stage in stages]
    epochs = [stages[0].recipe.epochs]
    numerics = context.spec.numerics
    trained = training.train_fleet(
        lanes, context.data, epochs, numerics.engine, evaluate_all=False, precision=numerics.precision
    )
    for number, snapshot in trained:
        _keep(stages[number], snapshot, context, store, started, share=len(stages))
        done(Outcome(stages[number].key))


def _lane(stage: RetrainStage, context: RunContext, store: Store) -> training.Lane:
    if stage.start is not None:
        model = context.model_with(store.weights(stage.start.key))
    elif stage.pruned.load.structured:
        model = context.model_with(store.weights(stage.pruned.key))
    else:
        model = context.new_model(seed_of("init", stage.pruned.dense.seed))
    mask = stored_mask(context, store, stage.pruned.key, model)
    role = ("round" if stage.intermediate else "retrain", stage.pruned.dense.seed, stage.seed)
    return training.Lane(model, stage.recipe, role, mask)


def _keep(
    stage: RetrainStage, snapshot: training.Snapshot, context: RunContext, store: Store, started: float, share: int = 1
) -> None:
    values = last_epochs(snapshot.history, stage.recipe, context, snapshot.diverged)
    record = record_of(stage, context, started, values, share=share, history=snapshot.history)
    if snapshot.diverged:
        store.write(stage.key, {**record, "status": "diverged"})
    else:
        store.write(stage.key, record, snapshot.weights)
