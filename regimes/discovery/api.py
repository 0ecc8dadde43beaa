"""Public interface: find a smaller network in one training, from fresh weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from regimes.config.discovery import Pressure
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.discovery.complexity import size_of
from regimes.discovery.gated_training import GatedTraining, Row
from regimes.discovery.prunable_graph import widths
from regimes.errors import UserError
from regimes.landscape.trial import copy_inputs, try_network
from regimes.models.build import copied


@dataclass(frozen=True)
class DiscoveryCheckpoint:
    """State of a gated training at the end of an epoch, from which it can be resumed.

    Attributes:
        epoch: number of finished epochs.
        tensors: weights, momentum and gates; under "good/" those of the fallback epoch.
        facts: history, whether the structure is fixed, fallback epoch and message.
    """

    epoch: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Discovery:
    """Result of a gated training.

    Attributes:
        model: the discovered network: the given class with smaller layers; removed blocks are replaced by their skip
            path. It has no gates or hooks.
        widths: {layer that produces units: (remaining units, units at the start)}.
        blocks: {residual block: whether it remains}.
        macs, params: multiply-accumulates per input and parameters of the discovered network.
        full_macs, full_params: those of the given network.
        history: a row per epoch: ``train_loss``, ``val_error``, expected ``macs`` and ``params`` (shares of the full
            network's), number of remaining ``units`` and ``blocks``, ``widths`` of all groups, ``seconds`` of training.
        message: why the training ended early or removed less than the pressure asked for; "" otherwise.
    """

    model: nn.Module
    widths: dict[str, tuple[int, int]]
    blocks: dict[str, bool]
    macs: int
    params: int
    full_macs: int
    full_params: int
    history: list[Row] = field(repr=False)
    message: str = ""

    @property
    def seconds(self) -> float:
        """Seconds of training, over all epochs."""
        return float(sum(row["seconds"] for row in self.history))

    def __str__(self) -> str:
        blocks = f", {sum(self.blocks.values())} of {len(self.blocks)} blocks" if self.blocks else ""
        widths = "  ".join(f"{name} {left}/{whole}" for name, (left, whole) in self.widths.items())
        lines = [
            f"{self.macs / self.full_macs:.1%} of the MACs ({self.macs:,}), "
            f"{self.params / self.full_params:.1%} of the parameters ({self.params:,}){blocks}",
            f"units left: {widths}",
            *([f"blocks left: {' '.join(name for name, left in self.blocks.items() if left)}"] if self.blocks else []),
            *([self.message] if self.message else []),
        ]
        return "\n".join(lines)


def discover(
    model: nn.Module,
    data: Dataset,
    nu: float = Pressure().nu,
    alpha: float = Pressure().alpha,
    kappa: float = Pressure().kappa,
    recipe: Recipe | None = None,
    seed: int = 0,
    watch: Callable[[Row], None] | None = None,
    **options: Any,
) -> Discovery:
    """Train a network and remove, while it trains, the units and residual blocks that are not worth their cost.

    Every unit and block has a Bernoulli gate. Weights and gate probabilities jointly minimise
    ``E[loss] + (lambda / 2) |W|^2 + sum_j r_j theta_j``, where ``r_j`` is the pressure of the expected complexity
    ``C = kappa MACs / MACs_full + (1 - kappa) params / params_full``: ``nu 2 (1 - alpha) dC/dtheta`` on units,
    ``nu 2 alpha dC/drho`` on blocks. A unit or block whose gate is closed and cannot reopen is removed: tensors,
    BatchNorm and momentum shrink, and later epochs are faster. After the share ``settle`` of the epochs the structure
    is fixed and trained as a plain network. (Complexity-aware training, arXiv 2406.04549; the formulas here are our
    own derivation.)

    Args:
        model: network with fresh weights; it is not changed, a copy is trained.
        data: the data set; moved to the model's device and dtype.
        nu: mean loss (nats) that the complexity of the whole network is worth; 0 removes nothing.
        alpha: units against layers: 0 removes units only, 1 residual blocks only.
        kappa: parameters against compute: 0 counts parameters only, 1 MACs only.
        recipe: training recipe; None: `Recipe()`.
        seed: seed of the training; the same seed gives the same network.
        watch: called with the history row of every epoch.
        options: further fields of `Pressure`.

    Raises:
        UserError: an option is unknown or out of range; the network has nothing to remove; torch-pruning is missing or
            cannot trace the model.
    """
    first = next(model.parameters())
    data = data.to(first.device, first.dtype)
    try:
        pressure = Pressure(nu=nu, alpha=alpha, kappa=kappa, **options)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}, got {each['input']!r}" for each in error.errors())
        raise UserError(*lines) from error
    if pressure.settle_error:
        raise UserError(f"settle: {pressure.settle_error}")
    if try_network(model, data.train.inputs[:2]).changes_inputs:
        model = copied(model)
        model.register_forward_pre_hook(copy_inputs, with_kwargs=True)
    training = GatedTraining(model, data, recipe or Recipe(), pressure, ("dense", seed))
    for _ in train_epochs(training):
        if watch is not None:
            watch(training.history[-1])
    return discovery_of(training)


def train_epochs(training: GatedTraining, saved: DiscoveryCheckpoint | None = None) -> Iterator[DiscoveryCheckpoint]:
    """Train to the end and yield a checkpoint after every epoch.

    Args:
        training: the training.
        saved: checkpoint from which to resume, with the same result as an uninterrupted training.
    """
    start = 0
    if saved is not None:
        start = saved.epoch
        _load(training, saved)
    for number in range(start, training.schedule.timeline.last_epoch):
        training.epoch(number)
        if training.diverged:
            training.message = f"diverged in epoch {number + 1}: its loss was not finite; try a smaller learning rate"
            return
        yield _saved(training)


def _saved(training: GatedTraining) -> DiscoveryCheckpoint:
    epoch, good = training.fallback
    facts = {
        "history": list(training.history),
        "settled": training.settled,
        "message": training.message,
        "good": epoch,
    }
    tensors = training.tensors()
    if not training.settled:
        tensors |= {f"good/{name}": each for name, each in good.items()}
    return DiscoveryCheckpoint(len(training.history), tensors, facts)


def _load(training: GatedTraining, saved: DiscoveryCheckpoint) -> None:
    now = {name: each for name, each in saved.tensors.items() if not name.startswith("good/")}
    good = {name.removeprefix("good/"): each for name, each in saved.tensors.items() if name.startswith("good/")}
    training.restore(now, saved.facts["settled"])
    training.fallback = (saved.facts["good"], good)
    training.history, training.message = list(saved.facts["history"]), saved.facts["message"]


def discovery_of(training: GatedTraining) -> Discovery:
    """Return the result of a finished training."""
    graph, size = training.graph, size_of(training.graph)
    return Discovery(
        model=training.model,
        widths=widths(graph, training.units.removed),
        blocks={block.name: number in graph.remaining_blocks for number, block in enumerate(graph.blocks)},
        macs=round(float(size.macs)),
        params=round(float(size.params)),
        full_macs=round(float(training.full.macs)),
        full_params=round(float(training.full.params)),
        history=training.history,
        message=training.message,
    )
