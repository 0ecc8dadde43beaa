"""Stage 2: prune a trained network to one density; its retrained copies share the mask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regimes.flow.lab import Lab
from regimes.flow.stage import Coordinates, Outcome, Report, attempt, is_diverged, record_of, value
from regimes.flow.store import Store
from regimes.flow.train import Train
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Variable
from regimes.pruners import ALLOCATIONS, PRUNERS
from regimes.pruners import prune as pruning
from regimes.registry import source_id
from regimes.spec.keys import SCHEMA, digest
from regimes.training.streams import generator_of

VARIABLES = {"kept": Variable("1", "fraction of prunable weights kept")}


@dataclass(frozen=True)
class Prune:
    """A mask over one dense network.

    Attributes:
        dense: the network.
        density: fraction of the prunable weights to keep.
        pruner, allocation: names or import paths.
    """

    dense: Train
    density: float
    pruner: str
    allocation: str

    kind = "prune"

    @cached_property
    def key(self) -> str:
        """The dense network's key and the way it is pruned."""
        return digest(self.describe())

    @property
    def needs(self) -> tuple[Train]:
        """The dense network."""
        return (self.dense,)

    @property
    def at(self) -> Coordinates:
        """The dense network's place, and the density."""
        return {**self.dense.at, "density": self.density}

    @property
    def work(self) -> float:
        """Scores are cheap."""
        return 10.0

    def describe(self) -> dict[str, Any]:
        """All that the key rests on."""
        return {
            "schema": SCHEMA,
            "stage": "prune",
            "dense": self.dense.key,
            "density": self.density,
            "pruner": [self.pruner, source_id(PRUNERS, self.pruner, "pruner")],
            "allocation": [self.allocation, source_id(ALLOCATIONS, self.allocation, "allocation")],
        }


def prune(fleet: Sequence[Prune], lab: Lab, store: Store, report: Report) -> None:
    """Prune one after another; the masks of one network at several densities come from the same scores."""
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            if is_diverged(stage.dense, store):
                store.write(stage.key, {**record_of(stage, lab, started, {}), "status": "diverged"})
            else:
                model = lab.model_with(store.weights(stage.dense.key))
                generator = generator_of("prune", stage.dense.seed)
                mask = pruning.prune(model, stage.density, stage.pruner, stage.allocation, lab.data, generator)
                kept = value(Estimate(mask.density, 0.0, mask.size), VARIABLES["kept"])
                layers = {name: int(layer.sum()) for name, layer in mask.layers.items()}
                record = record_of(stage, lab, started, {"kept": kept}, layers=layers)
                store.write(stage.key, record, mask.tensors())
            done(Outcome(stage.key))
