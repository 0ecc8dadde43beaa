"""Stage 4: measurement of a retrained network, or of two retrained copies of a pruned network."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regimes.config.keys import SCHEMA, digest
from regimes.experiment.context import RunContext, stored_mask
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.stages.stage import Coordinates, Outcome, Report, attempt, is_diverged, record_of, value
from regimes.experiment.store import Store
from regimes.landscape import METRICS
from regimes.landscape.estimate import Estimate, UncertainEstimateWarning
from regimes.landscape.metric import Metric, Probe, Trained
from regimes.registry import lookup, source_id
from regimes.training.batches import generator_of


@dataclass(frozen=True)
class MeasureStage:
    """One metric of one retrained network or one pair.

    Attributes:
        name: the name or import path of the metric.
        options: the options in the metric's table of the sweep file.
        subjects: one retrained copy, or two of one pruned network.
        pair: the pair's number within its dense seed; None for a single network.
    """

    name: str
    options: dict[str, Any]
    subjects: tuple[RetrainStage, ...]
    pair: int | None

    kind = "measure"
    intermediate = False

    @property
    def metric(self) -> Metric:
        """The metric."""
        metric: Metric = lookup(METRICS, self.name, "metric")
        return metric

    @property
    def resolved(self) -> Any:
        """The options with defaults filled in."""
        return self.metric.options(**self.options)

    @cached_property
    def key(self) -> str:
        """Hash of the metric, all its options, and the keys of the networks."""
        return digest(self.describe())

    @property
    def needs(self) -> tuple[Any, ...]:
        """The networks and their mask."""
        return (*self.subjects, self.subjects[0].pruned)

    @property
    def coords(self) -> Coordinates:
        """The pruned network's coordinates, and the retrain seed or the pair."""
        if self.pair is None:
            return self.subjects[0].coords
        return {**self.subjects[0].pruned.coords, "pair": self.pair}

    @property
    def cost(self) -> float:
        """The cost as estimated by the metric."""
        return self.metric.work(self.resolved, self.subjects[0].pruned.dense.images[0])

    def describe(self) -> dict[str, Any]:
        """Return the description that the key is a hash of."""
        return {
            "schema": SCHEMA,
            "stage": "measure",
            "metric": [self.name, source_id(METRICS, self.name, "metric")],
            "options": dataclasses.asdict(self.resolved),
            "subjects": [subject.key for subject in self.subjects],
        }


def measure(fleet: Sequence[MeasureStage], context: RunContext, store: Store, report: Report) -> None:
    """Measure sequentially; networks shared by several metrics are loaded once."""
    networks: dict[str, Trained] = {}
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            recipe = stage.subjects[0].recipe
            variables = {name: context.with_units(each, recipe) for name, each in stage.metric.variables.items()}
            if any(is_diverged(subject, store) for subject in stage.subjects):
                nothing = Estimate(float("nan"), float("nan"), 0)
                values = {name: value(nothing, variable) for name, variable in variables.items()}
                store.write(stage.key, {**record_of(stage, context, started, values), "status": "diverged"})
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UncertainEstimateWarning)  # the standard error stands in the record
                    warnings.filterwarnings("ignore", message="no Gauss-Newton split")
                    measured = stage.metric.measure(
                        [_network(subject, context, store, networks) for subject in stage.subjects],
                        _probe(stage, context),
                        stage.resolved,
                    )
                values = {name: value(each, variables[name]) for name, each in measured.items()}
                store.write(stage.key, record_of(stage, context, started, values))
            done(Outcome(stage.key))


def _probe(stage: MeasureStage, context: RunContext) -> Probe:
    seeds = [stage.subjects[0].pruned.dense.seed, *(subject.seed for subject in stage.subjects)]
    recipe = stage.subjects[0].recipe
    return Probe(context.data, recipe.loss_fn, generator_of("probe", *seeds), recipe.error_function)


def _network(subject: RetrainStage, context: RunContext, store: Store, networks: dict[str, Trained]) -> Trained:
    if subject.key not in networks:
        model = context.model_with(store.weights(subject.key)).eval()
        networks[subject.key] = Trained(model, stored_mask(context, store, subject.pruned.key, model))
    return networks[subject.key]
