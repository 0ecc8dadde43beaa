"""Stage 2 where networks are not pruned but discovered: a training of its own, at the dense network's temperature."""

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
from regimes.discovery.api import epochs, found
from regimes.discovery.gated_training import GatedTraining
from regimes.experiment.context import RunContext
from regimes.experiment.stages.stage import Coordinates, Outcome, Report, attempt, record_of, value
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Variable
from regimes.pruners.prune import prunable
from regimes.registry import source_id

GATED = 1.3  # work of a training with gates, in trainings without; what it saves later is not counted on
VARIABLES = {
    "kept": Variable("1", "fraction of prunable weights kept"),
    "macs": Variable("1", "fraction of the whole network's multiply-accumulates"),
}


@dataclass(frozen=True)
class DiscoverStage:
    """A smaller network found under one pressure, from the dense network's seed and by its recipe.

    Attributes:
        dense: the dense network beside which it stands in the map; nothing of it is used.
        pressure: how hard it is pressed.
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
    aside = False

    @cached_property
    def key(self) -> str:
        """The dense training's description and the pressure."""
        return digest(self.describe())

    @property
    def at(self) -> Coordinates:
        """The dense network's place, and nu."""
        return {**self.dense.at, "nu": self.pressure.nu}

    @property
    def work(self) -> float:
        """A training with gates."""
        return GATED * self.dense.work

    def describe(self) -> dict[str, Any]:
        """All that the key rests on."""
        estimator = self.pressure.estimator
        return {
            "schema": SCHEMA,
            "stage": "discover",
            "dense": self.dense.key,
            "pressure": self.pressure.model_dump(),
            "estimator": source_id(ESTIMATORS, estimator, "estimator"),
        }


def discover(fleet: Sequence[DiscoverStage], context: RunContext, store: Store, report: Report) -> None:
    """Discover one network after another; one whose loss is not finite has diverged."""
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            dense, precision = stage.dense, context.spec.numerics.precision
            model = context.new_model(seed_of("init", dense.seed))
            whole = sum(weight.numel() for weight in prunable(model).values())
            search = GatedTraining(model, context.data, dense.recipe, stage.pressure, ("dense", dense.seed), precision)
            for _ in epochs(search):
                pass
            if search.diverged:
                store.write(stage.key, {**record_of(stage, context, started, {}), "status": "diverged"})
            else:
                _keep(stage, search, whole, context, store, started)
            done(Outcome(stage.key))


def _keep(
    stage: DiscoverStage, search: GatedTraining, whole: int, context: RunContext, store: Store, started: float
) -> None:
    network = found(search)
    layers = {name: weight.numel() for name, weight in prunable(network.model).items()}
    values = {
        "kept": value(Estimate(sum(layers.values()) / whole, 0.0, whole), VARIABLES["kept"]),
        "macs": value(Estimate(network.macs / network.full_macs, 0.0, network.full_macs), VARIABLES["macs"]),
    }
    weights = {name: each.detach().cpu().clone().contiguous() for name, each in network.model.state_dict().items()}
    record = record_of(stage, context, started, values, layers=layers, history=network.history, message=network.message)
    store.write(stage.key, record, weights)
