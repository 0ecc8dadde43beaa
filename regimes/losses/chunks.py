"""Loss over inputs that are evaluated in chunks: weights of the chunks, found from the gradients in the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from regimes.errors import UserError
from regimes.losses.functions import LossFn, loss_value

TOLERANCE = 1e-3  # relative difference up to which two gradients, or two weights, count as equal
DIFFERENT = "the loss is neither a sum nor a weighted mean over inputs, so it cannot be computed in chunks"


def chunk_weights(loss_fn: LossFn, outputs: Sequence[Any], targets: Sequence[Tensor]) -> list[float]:
    """Return weights w such that the loss over all inputs is ``sum_c w_c loss(chunk c)``.

    They are 1 for a sum and the shares of inputs, of targets that count, or of class weights for a mean over those. The
    gradient of the whole loss in the outputs of a chunk has to be the chunk's own gradient times its weight, at two
    different places; the outputs of neighbouring inputs are mixed for that, so that they stay in the loss's domain.

    Args:
        loss_fn: the loss.
        outputs, targets: outputs and targets of each chunk.

    Raises:
        UserError: the loss is no such sum.
    """
    if len(targets) == 1:
        return [1.0]
    found = [_weights(loss_fn, [_mixed(each, share) for each in outputs], targets) for share in (0.3, 0.8)]
    for one, other in zip(*found, strict=True):
        if one is not None and other is not None and abs(one - other) > TOLERANCE * max(abs(one), abs(other)):
            raise UserError(DIFFERENT)
    total = sum(map(len, targets))
    # A chunk without any slope adds nothing to a derivative, whatever its weight.
    return [
        len(each) / total if one is None and other is None else float(other if one is None else one)
        for each, one, other in zip(targets, *found, strict=True)
    ]


def _weights(loss_fn: LossFn, outputs: Sequence[Any], targets: Sequence[Tensor]) -> list[float | None]:
    """Weight of each chunk; None where neither the whole loss nor the chunk's has a slope."""
    _, whole = _slopes(loss_fn, _joined(outputs), torch.cat(list(targets)))
    weights: list[float | None] = []
    for together, each, target in zip(whole.split([len(each) for each in targets]), outputs, targets, strict=True):
        finite, alone = _slopes(loss_fn, each, target)
        if not together.any() and not (finite and alone.any()):
            weights.append(None if finite else 0.0)  # a mean over no target is not finite
            continue
        weight = float((together * alone).sum() / alone.square().sum())
        if not torch.allclose(together, weight * alone, rtol=0.0, atol=TOLERANCE * float(together.abs().max())):
            raise UserError(DIFFERENT)
        weights.append(weight)
    return weights


def _slopes(loss_fn: LossFn, outputs: Any, targets: Tensor) -> tuple[bool, Tensor]:
    """Whether the loss is finite, and its gradient in the outputs of every input (n, k), in float64."""
    with torch.enable_grad():
        leaves: list[Tensor] = []

        def leaf(each: Any) -> Any:
            if not isinstance(each, Tensor) or not each.is_floating_point() or not each.dim():
                return each
            leaves.append(each.detach().requires_grad_())
            return leaves[-1]

        value = loss_value(loss_fn, tree_map(leaf, outputs), targets)
        parts = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    slopes = torch.cat([each.reshape(len(targets), -1).double() for each in parts], dim=1)
    return bool(value.isfinite()) and bool(slopes.isfinite().all()), slopes


def _mixed(outputs: Any, share: float) -> Any:
    """Outputs, each mixed with those of the next input."""

    def mix(each: Any) -> Any:
        if not isinstance(each, Tensor) or not each.is_floating_point() or not each.dim():
            return each
        return (1 - share) * each.detach() + share * each.detach().roll(1, 0)

    return tree_map(mix, outputs)


def _joined(parts: Sequence[Any]) -> Any:
    if not any(isinstance(each, Tensor) and each.dim() for each in tree_leaves(parts[0])):
        raise UserError(DIFFERENT)
    return tree_map(lambda *each: torch.cat(each) if isinstance(each[0], Tensor) and each[0].dim() else each[0], *parts)
