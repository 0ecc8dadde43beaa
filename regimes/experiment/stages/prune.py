"""Stage 2: pruning of a trained network to one density; its retrained copies share the mask."""

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
    """A mask on a dense network, or a network with fewer channels.

    Attributes:
        dense: the dense network.
        density: fraction of the prunable weights to keep.
        load: pruner, allocation and rewinding.
        after: the retrained network of the previous round, which is pruned further; None: the dense network is pruned.
        rewound: the snapshot of the dense training that kept weights are rewound to; None: no rewinding.
        target: the final density of an intermediate round; None: this is the last round.
    """

    dense: TrainStage | PretrainedStage
    density: float
    load: LoadConfig
    after: Retrained | None = None
    rewound: TrainStage | None = None
    target: float | None = None

    kind = "prune"

    @property
    def intermediate(self) -> bool:
        """Whether this is an intermediate round."""
        return self.target is not None

    @cached_property
    def key(self) -> str:
        """Hash of the dense network's key and the pruning settings."""
        return digest(self.describe())

    @property
    def round(self) -> int:
        """The number of earlier rounds."""
        return 0 if self.after is None else self.after.pruned.round + 1

    @property
    def needs(self) -> tuple[Any, ...]:
        """The network that is pruned, and its mask."""
        return (self.dense,) if self.after is None else (self.after, self.after.pruned)

    @property
    def coords(self) -> Coordinates:
        """The dense network's coordinates, and the final density."""
        return {**self.dense.coords, "density": self.target or self.density}

    @property
    def cost(self) -> float:
        """A small constant: scores are cheap."""
        return 10.0

    def describe(self) -> dict[str, Any]:
        """Return the description that the key is a hash of."""
        pruner, allocation = self.load.pruner, self.load.allocation
        more = {"embeddings": True} if self.load.embeddings else {}  # younger than the first keys
        source = None if self.load.structured else source_id(PRUNERS, pruner, "pruner")
        return {
            "schema": SCHEMA,
            "stage": "prune",
            "dense": self.dense.key,
            "after": self.after and self.after.key,
            "density": self.density,
            "pruner": [pruner, source],
            "allocation": [allocation, source_id(ALLOCATIONS, allocation, "allocation")],
            **more,
        }


class Retrained(Protocol):
    """Interface of the retrained network that is pruned further; see `RetrainStage`."""

    @property
    def key(self) -> str: ...
    @property
    def pruned(self) -> Any: ...


def prune(fleet: Sequence[PruneStage], context: RunContext, store: Store, report: Report) -> None:
    """Prune the networks of a fleet sequentially; a diverged network is not pruned."""
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
        model,
        stage.density,
        load.pruner,
        load.allocation,
        context.data,
        generator,
        loss_fn=loss_fn,
        within=within,
        embeddings=load.embeddings,
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
