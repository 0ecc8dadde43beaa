"""Find a smaller network in one training, from fresh weights."""

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


@dataclass(frozen=True)
class Saved:
    """A discovery at the end of an epoch: all that the next one depends on.

    Attributes:
        epoch: epochs done.
        tensors: weights, momentum, gates; under "good/" those of the last epoch to go back to.
        facts: history, whether the structure is settled, and what was said.
    """

    epoch: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Discovery:
    """What a training with gates ended with.

    Attributes:
        model: the network that was found: the class it was given as, with smaller layers; removed blocks are replaced
            by their skip path. No gate and no hook is left on it.
        widths: {layer that makes units: (left, at the start)}.
        blocks: {residual block: whether it is left}.
        macs, params: of the network that was found.
        full_macs, full_params: of the network that was given.
        history: a row per epoch: ``train_loss``, ``val_error``, expected ``macs`` and ``params`` (shares of the full
            ones), ``units`` and ``blocks`` alive, ``widths`` of all groups, ``seconds`` of training.
        message: what went against the wish; "" where nothing did.
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
        """Of training, all epochs."""
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
    """Train a network and remove the units and residual blocks that are not worth their cost, while it trains.

    Every unit and block has a Bernoulli gate. Weights and the gates' probabilities minimise together
    ``E[loss] + (lambda / 2) |W|^2 + sum_j r_j theta_j``, where ``r_j`` is the pressure of the expected complexity
    ``C = kappa MACs / MACs_full + (1 - kappa) params / params_full``: ``nu 2 (1 - alpha) dC/dtheta`` on units,
    ``nu 2 alpha dC/drho`` on blocks. A gate that is shut and has nothing to reopen it is removed: tensors, BatchNorm
    and momentum shrink, and the epochs that follow are faster. After the share ``settle`` of the epochs the structure
    is fixed and trains on as a plain network. (Complexity-aware training, arXiv 2406.04549; the formulas here are our
    own derivation.)

    Args:
        model: with fresh weights; it stays as it is, a copy is trained.
        data: moved to the model's device and dtype.
        nu: mean loss (nats) that one would pay for the whole network's complexity.
        alpha: 0 removes units only, 1 layers (blocks) only.
        kappa: 1 counts MACs only, 0 parameters only.
        recipe: of the training; None: `Recipe()`.
        seed: same seed, same network.
        watch: called with every epoch's row.
        options: of `Pressure`.

    Raises:
        UserError: an option that is none or out of its range; nothing can be removed; torch-pruning is missing or
            cannot follow the model.
    """
    first = next(model.parameters())
    here = data.to(first.device, first.dtype)
    try:
        pressure = Pressure(nu=nu, alpha=alpha, kappa=kappa, **options)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}, got {each['input']!r}" for each in error.errors())
        raise UserError(*lines) from error
    if pressure.too_short:
        raise UserError(f"settle: {pressure.too_short}")
    search = GatedTraining(model, here, recipe or Recipe(), pressure, ("dense", seed))
    for _ in epochs(search):
        if watch is not None:
            watch(search.history[-1])
    return found(search)


def epochs(search: GatedTraining, saved: Saved | None = None) -> Iterator[Saved]:
    """Train to the end and yield what is needed to go on, after every epoch; from ``saved`` as if never stopped."""
    start = 0
    if saved is not None:
        start = saved.epoch
        _load(search, saved)
    for number in range(start, search.course.timeline.last_epoch):
        search.epoch(number)
        if search.diverged:
            search.message = f"diverged in epoch {number + 1}: its loss was not finite; try a smaller learning rate"
            return
        yield _saved(search)


def _saved(search: GatedTraining) -> Saved:
    epoch, good = search.good
    facts = {
        "history": list(search.history),
        "settled": search.settled,
        "message": search.message,
        "good": epoch,
    }
    tensors = search.tensors()
    if not search.settled:
        tensors |= {f"good/{name}": each for name, each in good.items()}
    return Saved(len(search.history), tensors, facts)


def _load(search: GatedTraining, saved: Saved) -> None:
    now = {name: each for name, each in saved.tensors.items() if not name.startswith("good/")}
    good = {name.removeprefix("good/"): each for name, each in saved.tensors.items() if name.startswith("good/")}
    search.restore(now, saved.facts["settled"])
    search.good = (saved.facts["good"], good)
    search.history, search.message = list(saved.facts["history"]), saved.facts["message"]


def found(search: GatedTraining) -> Discovery:
    """What a finished search has found."""
    anatomy, size = search.anatomy, size_of(search.anatomy)
    return Discovery(
        model=search.model,
        widths=widths(anatomy, search.units.gone),
        blocks={block.name: number in anatomy.standing for number, block in enumerate(anatomy.blocks)},
        macs=round(float(size.macs)),
        params=round(float(size.params)),
        full_macs=round(float(search.full.macs)),
        full_params=round(float(search.full.params)),
        history=search.history,
        message=search.message,
    )
