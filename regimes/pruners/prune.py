"""Unstructured pruning: scores from a pruner, counts from an allocation, and the resulting mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regimes.errors import UserError
from regimes.losses.functions import cross_entropy
from regimes.pruners import ALLOCATIONS, PRUNERS
from regimes.pruners.mask import Mask
from regimes.pruners.prunable_weights import needed_by_norm, plain_name, prunable, without_parametrizations
from regimes.registry import lookup

if TYPE_CHECKING:
    from regimes.data.dataset import Dataset


@dataclass(frozen=True)
class Candidate:
    """Input of a pruner.

    Attributes:
        model: the trained network; if it has parametrised weights, a copy with plain weights of the same values.
        weights: its prunable weights by parameter name.
        density: the requested density.
        data: the data set; None if not given.
        loss_fn: (outputs, targets) -> loss.
        generator: CPU generator for random scores.
    """

    model: nn.Module
    weights: dict[str, nn.Parameter]
    density: float
    data: Dataset | None
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    generator: torch.Generator

    def check_real(self, pruner: str) -> None:
        """Raise `UserError` if a weight is complex, for a pruner that takes derivatives."""
        for name, weight in self.weights.items():
            if weight.is_complex():
                raise UserError(f"pruner '{pruner}' needs real weights, {name} is complex; use 'magnitude' or 'random'")


def prune(
    model: nn.Module,
    density: float,
    pruner: str = "magnitude",
    allocation: str = "uniform",
    data: Dataset | None = None,
    generator: torch.Generator | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    within: Mask | None = None,
    embeddings: bool = False,
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
        embeddings: whether the weights of embeddings are prunable, too.

    Raises:
        UserError: a density outside (0, 1] or too low for the layers with weight or spectral norm, an unknown name, no
            prunable layer or one whose weight cannot be masked, scores that are NaN or do not fit the weights, an
            earlier mask of other weights, or an allocation that keeps another number of weights.
    """
    if not 0 < density <= 1:
        raise UserError(f"density {density}: allowed: above 0 and up to 1 (the fraction of weights kept)")
    weights = prunable(model, embeddings)
    keep = check_kept(model, weights, density)
    if within is not None:
        _check_within(within, weights)
    scores = _scores(model, weights, density, pruner, data, loss_fn, generator)
    if within is not None:
        scores = {name: _inside(score, within.layers[name]) for name, score in scores.items()}
    shares = {name: score.cpu() for name, score in scores.items()}  # so that allocations are the same on any device
    counts: dict[str, int] = lookup(ALLOCATIONS, allocation, "allocation")(shares, keep)
    needed = needed_by_norm(model, scores)
    if within is not None or needed:
        live = weights if within is None else within.layers
        most = {name: each.numel() if within is None else int(each.sum()) for name, each in live.items()}
        counts = _bounded(counts, {name: int(needed[name].sum()) if name in needed else 0 for name in weights}, most)
    for name, best in needed.items():
        scores[name] = scores[name].masked_fill(best, torch.inf)
    mask = Mask({name: top_mask(scores[name], counts[name]) for name in weights})
    if mask.kept != keep:
        raise UserError(
            f"allocation '{allocation}' keeps {mask.kept} of {mask.size} weights; density {density:g} needs {keep}"
        )
    return mask


def check_kept(model: nn.Module, weights: Mapping[str, Tensor], density: float) -> int:
    """Return the number of weights that a density keeps.

    Raises:
        UserError: it is fewer than the layers with weight or spectral norm need.
    """
    keep = max(1, round(density * sum(weight.numel() for weight in weights.values())))
    least = sum(int(each.sum()) for each in needed_by_norm(model, weights).values())
    if keep < least:
        raise UserError(
            f"density {density:g} keeps {keep} weights, but layers with weight norm need one per channel and those "
            f"with spectral norm one each, {least} together; use a higher density or remove_parametrizations"
        )
    return keep


def _scores(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    density: float,
    pruner: str,
    data: Dataset | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Return a pruner's score for every weight; parametrised weights are scored by the values that the layers use."""
    plain = without_parametrizations(model)
    named = dict(plain.named_parameters())
    plain_weights = {plain_name(name): named[plain_name(name)] for name in weights}
    generator = generator or torch.Generator().manual_seed(0)
    candidate = Candidate(plain, plain_weights, density, data, loss_fn, generator)
    found = _checked(lookup(PRUNERS, pruner, "pruner")(candidate), plain_weights, pruner)
    return {name: found[plain_name(name)] for name in weights}


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
        if bool(score.isnan().any()):
            raise UserError(f"pruner '{pruner}' returns NaN for '{name}'; expected scores that can be compared")
    return dict(scores)


def _check_within(within: Mask, weights: Mapping[str, Tensor]) -> None:
    """Raise `UserError` if an earlier mask does not belong to the weights."""
    for name, weight in weights.items():
        if name not in within.layers:
            raise UserError(f"within has no mask of '{name}'; make it with the same model and the same embeddings=")
        if within.layers[name].shape != weight.shape:
            raise UserError(
                f"within has a mask of shape {tuple(within.layers[name].shape)} for '{name}', whose shape is "
                f"{tuple(weight.shape)}; make it with the same model"
            )


def _inside(score: Tensor, alive: Tensor) -> Tensor:
    """Set the scores outside a mask to minus infinity."""
    return torch.where(alive.to(score.device), score, -torch.inf)


def _bounded(counts: dict[str, int], least: dict[str, int], most: dict[str, int]) -> dict[str, int]:
    """Limit each layer's count; the difference goes to, or comes from, the layers with most room."""
    found = {name: max(least[name], min(count, most[name])) for name, count in counts.items()}
    rest = sum(counts.values()) - sum(found.values())
    for name in sorted(
        found, key=lambda name: (found[name] - most[name] if rest > 0 else least[name] - found[name], name)
    ):
        step = max(least[name] - found[name], min(rest, most[name] - found[name]))
        found[name] += step
        rest -= step
    return found


def top_mask(scores: Tensor, count: int) -> Tensor:
    """Return a boolean tensor that marks exactly ``count`` of the highest scores; ties go to the lower index."""
    order = torch.argsort(scores.flatten(), descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.view(scores.shape)
