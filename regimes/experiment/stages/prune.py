"""Stage 2: prune a trained network to one density; its retrained copies share the mask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from regimes.config.keys import SCHEMA, digest, seed_of
from regimes.config.sweep import LoadConfig
from regimes.experiment.context import RunContext, stored_mask
from regimes.experiment.stages.pretrained import PretrainedStage
from regimes.experiment.stages.stage import Coordinates, Outcome, Report, attempt, is_diverged, record_of, value
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import Variable
from regimes.pruners import ALLOCATIONS, PRUNERS
from regimes.pruners import prune as pruning
from regimes.pruners.channels import shrink
from regimes.registry import source_id
from regimes.training.batches import generator_of

VARIABLES = {"kept": Variable("1", "fraction of prunable weights kept")}


@dataclass(frozen=True)
class PruneStage:
    """A mask over one dense network, or a network with fewer channels.

    Attributes:
        dense: the dense network.
        density: fraction of the prunable weights to keep.
        load: how: pruner, allocation, rewinding.
        after: the network retrained after the round before, of which this one goes on; None: the dense network.
        rewound: the snapshot of the dense training whose weights the survivors go back to; None: they stay.
        target: the density that a round is on its way to; None: this is the last round.
    """

    dense: TrainStage | PretrainedStage
    density: float
    load: LoadConfig
    after: Retrained | None = None
    rewound: TrainStage | None = None
    target: float | None = None

    kind = "prune"

    @property
    def aside(self) -> bool:
        """Whether this is a step on the way, of which the map shows nothing."""
        return self.target is not None

    @cached_property
    def key(self) -> str:
        """The dense network's key and the way it is pruned."""
        return digest(self.describe())

    @property
    def round(self) -> int:
        """Rounds of retraining that lie before it."""
        return 0 if self.after is None else self.after.pruned.round + 1

    @property
    def needs(self) -> tuple[Any, ...]:
        """The network that is pruned, and the mask it already has."""
        return (self.dense,) if self.after is None else (self.after, self.after.pruned)

    @property
    def at(self) -> Coordinates:
        """The dense network's place, and the density that is aimed at."""
        return {**self.dense.at, "density": self.target or self.density}

    @property
    def work(self) -> float:
        """Scores are cheap."""
        return 10.0

    def describe(self) -> dict[str, Any]:
        """All that the key rests on."""
        pruner, allocation = self.load.pruner, self.load.allocation
        source = None if self.load.structured else source_id(PRUNERS, pruner, "pruner")
        return {
            "schema": SCHEMA,
            "stage": "prune",
            "dense": self.dense.key,
            "after": self.after and self.after.key,
            "density": self.density,
            "pruner": [pruner, source],
            "allocation": [allocation, source_id(ALLOCATIONS, allocation, "allocation")],
        }


class Retrained(Protocol):
    """What pruning asks of the network it goes on from; see `retrain.Retrain`."""

    @property
    def key(self) -> str: ...
    @property
    def pruned(self) -> Any: ...


def prune(fleet: Sequence[PruneStage], context: RunContext, store: Store, report: Report) -> None:
    """Prune one after another; the masks of one network at several densities come from the same scores."""
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            if is_diverged(stage.after or stage.dense, store):  # type: ignore[arg-type]
                store.write(stage.key, {**record_of(stage, context, started, {}), "status": "diverged"})
            else:
                kept, layers, tensors = (_channels if stage.load.structured else _mask)(stage, context, store)
                values = {"kept": value(kept, VARIABLES["kept"])}
                store.write(stage.key, record_of(stage, context, started, values, layers=layers), tensors)
            done(Outcome(stage.key))


Pruned = tuple[Estimate, dict[str, int], dict[str, Tensor]]  # density, weights kept by layer, what is stored


def _mask(stage: PruneStage, context: RunContext, store: Store) -> Pruned:
    load, generator = stage.load, generator_of("prune", stage.dense.seed)
    model = context.model_with(store.weights((stage.after or stage.dense).key))
    within = None if stage.after is None else stored_mask(context, store, stage.after.pruned.key, model)
    loss_fn = stage.dense.recipe.loss_fn
    mask = pruning.prune(
        model, stage.density, load.pruner, load.allocation, context.data, generator, loss_fn=loss_fn, within=within
    )
    layers = {name: int(layer.sum()) for name, layer in mask.layers.items()}
    return Estimate(mask.density, 0.0, mask.size), layers, mask.tensors()


def _channels(stage: PruneStage, context: RunContext, store: Store) -> Pruned:
    whole = sum(weight.numel() for weight in pruning.prunable(context.new_model(seed=0)).values())
    model = context.model_with(store.weights((stage.after or stage.dense).key))
    here = sum(weight.numel() for weight in pruning.prunable(model).values())
    inputs = context.data.train.inputs[:2]
    seed = seed_of("prune", stage.dense.seed)
    small, kept = shrink(
        model, stage.density * whole / here, inputs, stage.load.pruner, stage.load.allocation, seed % 2**32
    )
    layers = {name: weight.numel() for name, weight in pruning.prunable(small).items()}
    weights = {name: each.detach().cpu().clone().contiguous() for name, each in small.state_dict().items()}
    return Estimate(kept * here / whole, 0.0, whole), layers, weights
