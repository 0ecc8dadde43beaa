"""Stage 2 with discovery in place of pruning: a separate training with the dense network's recipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regimes.config.discovery import Pressure
from regimes.config.keys import SCHEMA, digest, seed_of
from regimes.config.sweep import LoadConfig
from regimes.discovery import ESTIMATORS
from regimes.discovery.api import discovery_of, train_epochs
from regimes.discovery.gated_training import GatedTraining
from regimes.experiment.context import RunContext
from regimes.experiment.stages.stage import Coordinates, Outcome, Report, attempt, record_of, value
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Variable
from regimes.pruners.prune import prunable
from regimes.registry import source_id

GATED_WORK_FACTOR = 1.3  # cost of a training with gates relative to one without; later savings are not counted
VARIABLES = {
    "kept": Variable("1", "fraction of prunable weights kept"),
    "macs": Variable("1", "fraction of the whole network's multiply-accumulates"),
}


@dataclass(frozen=True)
class DiscoverStage:
    """A smaller network discovered under one pressure, with the dense network's seed and recipe.

    Attributes:
        dense: the dense network with the same coordinates; its weights are not used.
        pressure: the pressure.
        load: the load axes.
    """

    dense: TrainStage
    pressure: Pressure
    load: LoadConfig

    kind = "discover"
    needs = ()
    after = None
    rewound = None
    round = 0
    intermediate = False

    @cached_property
    def key(self) -> str:
        """Hash of the dense network's key and the pressure."""
        return digest(self.describe())

    @property
    def coords(self) -> Coordinates:
        """The dense network's coordinates, and nu."""
        return {**self.dense.coords, "nu": self.pressure.nu}

    @property
    def cost(self) -> float:
        """The cost of a training with gates."""
        return GATED_WORK_FACTOR * self.dense.cost

    def describe(self) -> dict[str, Any]:
        """Return the description that the key is a hash of."""
        estimator = self.pressure.estimator
        return {
            "schema": SCHEMA,
            "stage": "discover",
            "dense": self.dense.key,
            "pressure": self.pressure.model_dump(),
            "estimator": source_id(ESTIMATORS, estimator, "estimator"),
        }


def discover(fleet: Sequence[DiscoverStage], context: RunContext, store: Store, report: Report) -> None:
    """Discover the networks of a fleet sequentially; one with a non-finite loss has diverged."""
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            dense, precision = stage.dense, context.spec.numerics.precision
            model = context.new_model(seed_of("init", dense.seed))
            whole = sum(weight.numel() for weight in prunable(model).values())
            search = GatedTraining(model, context.data, dense.recipe, stage.pressure, ("dense", dense.seed), precision)
            for _ in train_epochs(search):
                pass
            if search.diverged:
                store.write(stage.key, {**record_of(stage, context, started, {}), "status": "diverged"})
            else:
                _keep(stage, search, whole, context, store, started)
            done(Outcome(stage.key))


def _keep(
    stage: DiscoverStage, search: GatedTraining, whole: int, context: RunContext, store: Store, started: float
) -> None:
    network = discovery_of(search)
    layers = {name: weight.numel() for name, weight in prunable(network.model).items()}
    values = {
        "kept": value(Estimate(sum(layers.values()) / whole, 0.0, whole), VARIABLES["kept"]),
        "macs": value(Estimate(network.macs / network.full_macs, 0.0, network.full_macs), VARIABLES["macs"]),
    }
    weights = {name: each.detach().cpu().clone().contiguous() for name, each in network.model.state_dict().items()}
    record = record_of(stage, context, started, values, layers=layers, history=network.history, message=network.message)
    store.write(stage.key, record, weights)
