"""Sharpness: largest increase of the loss within a ball around the weights, as in SAM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, Strict
from torch import nn

from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.hessian_operator import AnyMask, HessianOperator
from regimes.landscape.inputs import Data, pair
from regimes.landscape.metric import Images, LossFn, Metric, MetricValues, Probe, Trained, Variable, image_count, subset


def sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    rho: float = 0.05,
    *,
    steps: int = 1,
    adaptive: bool = False,
    chunk: int = 0,
) -> Estimate:
    """Return the sharpness ``max L(w + e) - L(w)`` over ``|e|_2 <= rho``, on the mask's support, in eval mode.

    With one step, ``e = rho g / |g|`` as in SAM (Foret et al. 2021, arXiv 2010.01412). With more, projected gradient
    ascent: each step moves a fifth of the radius along the gradient and is projected back onto the ball, and the
    largest loss on the way is taken. Either is a lower bound of the maximum. With ``adaptive`` (ASAM, Kwon et al. 2021,
    arXiv 2102.11600), the ball is ``|e / |w||_2 <= rho``, elementwise, which is invariant to rescaling weights between
    layers.

    The standard error is 0 for one step, which is exact for these inputs; for more steps, it is the increase found in
    their second half.

    Args:
        model, loss_fn, data, mask, chunk: as in `hessian_trace`.
        rho: radius of the ball.
        steps: number of ascent steps.
        adaptive: whether to scale the ball by the weights.

    Raises:
        UserError: rho or steps out of range.
    """
    if not rho > 0 or steps < 1:
        raise UserError(f"rho = {rho}, steps = {steps}: allowed: rho above 0 and steps at least 1")
    around = HessianOperator(model, loss_fn, pair(data, model), mask, chunk)
    scale = around.weights().abs() if adaptive else torch.ones(around.size, device=around.device, dtype=around.dtype)
    low, gradient = around.loss_and_gradient()
    found: list[float] = []
    inside = torch.zeros_like(scale)  # e / scale, in the unit ball times rho
    for _ in range(steps):
        uphill = scale * gradient
        length = float(uphill.norm())
        if not length > 0 or not math.isfinite(length):
            found.append(found[-1] if found and length == 0 else low if length == 0 else math.nan)
            break
        inside = inside + (rho if steps == 1 else rho / 5) * uphill / length
        inside = inside * min(1.0, rho / float(inside.norm()))
        high, gradient = around.loss_and_gradient(inside * scale)
        found.append(high)
    if any(math.isnan(each) for each in found):
        return Estimate(math.nan, math.nan, len(found), "nat")
    if steps == 1:
        return Estimate(found[0] - low, 0.0, 1, "nat")
    best, before = max([low, *found]), max([low, *found[: len(found) // 2]])
    return Estimate(best - low, best - before, len(found), "nat").warned("sharpness")


@dataclass(frozen=True)
class SharpnessOptions:
    """Options of the metric "sharpness".

    Attributes:
        images: number of training images used (0: all).
        rho: radius of the ball.
        steps: number of ascent steps.
        adaptive: whether to scale the ball by the weights.
    """

    images: Images = 256
    rho: Annotated[float, Strict(), Field(gt=0)] = 0.05
    steps: Annotated[int, Strict(), Field(ge=1)] = 1
    adaptive: Annotated[bool, Strict()] = False


def _measure(subjects: Sequence[Trained], probe: Probe, options: SharpnessOptions) -> MetricValues:
    (subject,) = subjects
    data = subset(probe.data.train, options.images)
    return {
        "sharpness": sharpness(
            subject.model,
            probe.loss_fn,
            data,
            subject.mask,
            options.rho,
            steps=options.steps,
            adaptive=options.adaptive,
        )
    }


SHARPNESS = Metric(
    name="sharpness",
    subject="model",
    options=SharpnessOptions,
    table="sharpness",
    variables={"sharpness": Variable("nat", "rise of the training loss within a ball of radius rho (eval mode)")},
    measure=_measure,
    work=lambda options, images: (3 + 3 * options.steps) * image_count(options.images, images),
)
