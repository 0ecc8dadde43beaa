"""Loss over inputs that are evaluated in chunks: weights of the chunks, found by trying the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from regimes.errors import UserError
from regimes.losses.functions import IGNORED, LossFn, loss_value

TOLERANCE = 1e-3  # relative error up to which a weight counts as found


def chunk_weights(loss_fn: LossFn, outputs: Any, targets: Sequence[Tensor]) -> list[float]:
    """Return weights w such that the loss over all inputs is ``sum_c w_c loss(chunk c)``.

    They are 1 for a loss that is a sum; for a mean over inputs, the sizes of the chunks over their total; for a mean
    over targets that are not ignored, likewise their numbers; for any other weighted mean (weights by class), solved
    for. The loss is tried on noise in place of outputs, so no network is evaluated. A loss that cannot be evaluated on
    noise counts as a mean over inputs.

    Args:
        loss_fn: the loss.
        outputs: outputs of a few inputs (k, ...), for their form and dtype.
        targets: the targets of each chunk.

    Raises:
        UserError: the loss is neither a sum nor a weighted mean over inputs.
    """
    sizes = [float(len(each)) for each in targets]
    if len(targets) == 1:
        return [1.0]
    generator = torch.Generator().manual_seed(0)
    try:
        sums, ratios = _tried(loss_fn, outputs, targets, generator)
        if sums:
            return [1.0] * len(targets)
        counts = [float((each != IGNORED).reshape(len(each), -1).sum()) for each in targets]
        largest = ratios.index(max(ratios))
        for weights in (sizes, counts, ratios):
            scale = weights[largest] / ratios[largest]
            if all(abs(w - scale * r) <= TOLERANCE * max(weights) for w, r in zip(weights, ratios, strict=True)):
                break
        again = _tried(loss_fn, outputs, targets, generator)[1]
    except (RuntimeError, ValueError, IndexError):
        return [each / sum(sizes) for each in sizes]
    if any(abs(one - other) > 10 * TOLERANCE * max(ratios) for one, other in zip(again, ratios, strict=True)):
        raise UserError("the loss is neither a sum nor a mean over inputs, so it cannot be computed in chunks")
    return [each / sum(weights) for each in weights]


def _tried(
    loss_fn: LossFn, outputs: Any, targets: Sequence[Tensor], generator: torch.Generator
) -> tuple[bool, list[float]]:
    """Whether the loss is a sum, and else the weight of each chunk over that of a reference chunk."""
    shapes = outputs

    def noise(count: int, scale: float) -> Any:
        def draw(each: Any) -> Any:
            if not isinstance(each, Tensor) or not each.dim():
                return each
            drawn = scale * torch.randn((count, *each.shape[1:]), generator=generator, dtype=torch.float64)
            return drawn.to(each.device, each.dtype)

        return tree_map(draw, shapes)

    reference = next((each for each in targets if bool((each != IGNORED).any())), targets[0])
    quiet = noise(len(reference), 0.1)
    low = float(loss_value(loss_fn, quiet, reference))
    ratios, sums = [], True
    for chunk in targets:
        loud = noise(len(chunk), 5.0)
        high = float(loss_value(loss_fn, loud, chunk))
        if not math.isfinite(high):  # a mean over no target at all
            ratios.append(0.0)
            continue
        both = tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) and a.dim() else a, quiet, loud)
        whole = float(loss_value(loss_fn, both, torch.cat([reference, chunk])))
        sums = sums and abs(whole - low - high) <= TOLERANCE * max(abs(low), abs(high), abs(whole))
        ratios.append((whole - low) / (high - whole) if high != whole else math.inf)
    return sums, ratios
