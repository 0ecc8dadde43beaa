"""Stage 3: retrain a pruned network from its surviving weights; copies differ in data order and augmentation only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regimes.flow.lab import Lab
from regimes.flow.prune import Prune
from regimes.flow.stage import Coordinates, Outcome, Report, attempt, in_halves, is_diverged, record_of
from regimes.flow.store import Store
from regimes.flow.train import last_epochs, training_work
from regimes.pruners.mask import Mask
from regimes.spec.keys import SCHEMA, digest
from regimes.spec.recipe import Recipe
from regimes.training import train as training


@dataclass(frozen=True)
class Retrain:
    """One retrained copy of a pruned network.

    Attributes:
        pruned: the mask, and through it the dense network.
        recipe: the same in every cell, whatever the temperature.
        seed: the retrain seed.
    """

    pruned: Prune
    recipe: Recipe
    seed: int

    kind = "retrain"

    @cached_property
    def key(self) -> str:
        """The pruned network's key, the recipe and the seed."""
        return digest(self.describe())

    @property
    def needs(self) -> tuple[Any, ...]:
        """The dense network (its weights) and its mask."""
        return (self.pruned.dense, self.pruned)

    @property
    def at(self) -> Coordinates:
        """The pruned network's place, and the retrain seed."""
        return {**self.pruned.at, "retrain_seed": self.seed}

    @property
    def work(self) -> float:
        """The whole recipe; only the last epochs are evaluated."""
        return training_work(self.recipe, self.pruned.dense.images, evaluated=self.recipe.last)

    def describe(self) -> dict[str, Any]:
        """All that the key rests on."""
        recipe = self.recipe.science()
        return {"schema": SCHEMA, "stage": "retrain", "pruned": self.pruned.key, "recipe": recipe, "seed": self.seed}


def retrain(fleet: Sequence[Retrain], lab: Lab, store: Store, report: Report) -> None:
    """Retrain the copies of a fleet together; one whose dense network diverged is not trained at all."""
    sound = []
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            if is_diverged(stage.pruned, store):
                _keep(stage, training.Snapshot(0, {}, {}, diverged=True), lab, store, started)
                done(Outcome(stage.key))
            else:
                sound.append(stage)
    in_halves(
        sound, lambda stage: [stage], lambda stages, done: _retrain_together(stages, lab, store, done), store, report
    )


def _retrain_together(stages: Sequence[Retrain], lab: Lab, store: Store, done: Report) -> None:
    if not stages:
        return
    started = time.perf_counter()
    lanes = [_lane(stage, lab, store) for stage in stages]
    epochs = [stages[0].recipe.epochs]
    numerics = lab.spec.numerics
    trained = training.train_fleet(
        lanes, lab.data, epochs, numerics.engine, evaluate_all=False, precision=numerics.precision
    )
    for number, snapshot in trained:
        _keep(stages[number], snapshot, lab, store, started, share=len(stages))
        done(Outcome(stages[number].key))


def _lane(stage: Retrain, lab: Lab, store: Store) -> training.Lane:
    model = lab.model_with(store.weights(stage.pruned.dense.key))
    mask = Mask.from_tensors(store.weights(stage.pruned.key), model).to(lab.device)
    return training.Lane(model, stage.recipe, ("retrain", stage.pruned.dense.seed, stage.seed), mask)


def _keep(stage: Retrain, snapshot: training.Snapshot, lab: Lab, store: Store, started: float, share: int = 1) -> None:
    values = last_epochs(snapshot.history, stage.recipe.last, lab, snapshot.diverged)
    record = record_of(stage, lab, started, values, share=share, history=snapshot.history)
    if snapshot.diverged:
        store.write(stage.key, {**record, "status": "diverged"})
    else:
        store.write(stage.key, record, snapshot.weights)
