"""Unstructured pruning: scores from a pruner, counts from an allocation, and the resulting mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.pruners import ALLOCATIONS, PRUNERS
from regimes.pruners.mask import Mask
from regimes.registry import lookup

if TYPE_CHECKING:
    from regimes.data.dataset import Dataset

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Candidate:
    """Input of a pruner.

    Attributes:
        model: the trained network.
        weights: its prunable weights by parameter name.
        density: the requested density.
        data: the data set; None if not given.
        loss_fn: (outputs, targets) -> mean loss.
        generator: CPU generator for random scores.
    """

    model: nn.Module
    weights: dict[str, nn.Parameter]
    density: float
    data: Dataset | None
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    generator: torch.Generator


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the prunable weights: those of all convolutions and linear layers except the last linear layer.

    The first convolution and 1x1 shortcuts are prunable; the head, biases and BatchNorm are not (Zhou et al. 2023).

    Raises:
        UserError: the model has no prunable layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
    linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    if linear:
        layers.pop(linear[-1])
    weights: dict[str, nn.Parameter] = {
        f"{name}.weight" if name else "weight": _weight(layer) for name, layer in layers.items()
    }
    named = dict(model.named_parameters())  # tied weights have one name there
    weights = {name: weight for name, weight in weights.items() if name in named}
    if not weights:
        raise UserError(
            f"{type(model).__name__} has no prunable layer: no convolution, and no linear layer except the last one"
        )
    return weights


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def prune(
    model: nn.Module,
    density: float,
    pruner: str = "magnitude",
    allocation: str = "uniform",
    data: Dataset | None = None,
    generator: torch.Generator | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    within: Mask | None = None,
) -> Mask:
    """Return the mask that keeps ``round(density * prunable weights)`` weights; the model is not changed.

    Args:
        model: a trained network.
        density: fraction of the prunable weights to keep, in (0, 1].
        pruner: a name in `PRUNERS` or an import path of ``Candidate -> {name: scores}``; higher scores are kept.
        allocation: a name in `ALLOCATIONS` or an import path of ``(scores, keep) -> {name: count}``.
        data: data set, for pruners that use it.
        generator: CPU generator, for random pruners; None: seed 0.
        loss_fn: (outputs, targets) -> mean loss, for pruners that use it.
        within: earlier mask of the same network; weights pruned there stay pruned.

    Raises:
        UserError: a density outside (0, 1], an unknown name, no prunable layer, scores that do not fit the weights, or
            an allocation that keeps another number of weights.
    """
    if not 0 < density <= 1:
        raise UserError(f"density {density}: allowed: above 0 and up to 1 (the fraction of weights kept)")
    weights = prunable(model)
    candidate = Candidate(model, weights, density, data, loss_fn, generator or torch.Generator().manual_seed(0))
    scores = _checked(lookup(PRUNERS, pruner, "pruner")(candidate), weights, pruner)
    if within is not None:
        scores = {name: _inside(score, within.layers[name]) for name, score in scores.items()}
    keep = max(1, round(density * sum(weight.numel() for weight in weights.values())))
    shares = {name: score.cpu() for name, score in scores.items()}  # so that allocations are the same on any device
    counts: dict[str, int] = lookup(ALLOCATIONS, allocation, "allocation")(shares, keep)
    if within is not None:
        counts = _at_most(counts, {name: int(layer.sum()) for name, layer in within.layers.items()})
    mask = Mask({name: top_mask(scores[name], counts[name]) for name in weights})
    if mask.kept != keep:
        raise UserError(
            f"allocation '{allocation}' keeps {mask.kept} of {mask.size} weights; density {density:g} needs {keep}"
        )
    return mask


def _checked(scores: Any, weights: Mapping[str, Tensor], pruner: str) -> dict[str, Tensor]:
    """Check that there is one score for every prunable weight."""
    for name, weight in weights.items():
        score = scores.get(name) if isinstance(scores, Mapping) else None
        if not isinstance(score, Tensor) or score.shape != weight.shape:
            got = f"a tensor of shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise UserError(
                f"pruner '{pruner}' returns {got} for '{name}'; expected {{name: scores}} with scores of the weight's "
                f"shape {tuple(weight.shape)}"
            )
    return dict(scores)


def _inside(score: Tensor, alive: Tensor) -> Tensor:
    """Set the scores outside a mask to minus infinity."""
    return torch.where(alive.to(score.device), score, -torch.inf)


def _at_most(counts: dict[str, int], most: dict[str, int]) -> dict[str, int]:
    """Limit the counts to each layer's live weights; the excess goes to the layers with most room."""
    found = {name: min(count, most[name]) for name, count in counts.items()}
    over = sum(counts.values()) - sum(found.values())
    for name in sorted(found, key=lambda name: (found[name] - most[name], name)):
        more = min(over, most[name] - found[name])
        found[name] += more
        over -= more
    return found


def top_mask(scores: Tensor, count: int) -> Tensor:
    """Return a boolean tensor that marks exactly ``count`` of the highest scores; ties go to the lower index."""
    order = torch.argsort(scores.flatten(), descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.view(scores.shape)
