"""What a trial is judged by: the error, the loss, and the loss once confidence is set right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes.config.recipe import Recipe
from regimes.data.dataset import Split
from regimes.landscape.error import finite_mistakes, images_at_once, outputs

SURE = 20.0  # times that outputs are multiplied by at most, or divided
HALVINGS = 40  # of the interval in which the factor lies


@dataclass(frozen=True)
class Validation:
    """A network on a split.

    Attributes:
        loss: mean over the images.
        error: share of wrong answers.
        calibrated: see `calibrated_loss`; the loss itself where it is not the cross-entropy of classes.
    """

    loss: float
    error: float
    calibrated: float


def validate(model: nn.Module, split: Split, recipe: Recipe) -> Validation:
    """Judge a network, in eval mode, from one pass over the split."""
    answers, targets = outputs(model, split.inputs), split.targets
    total, wrong, size = 0.0, list[Tensor](), images_at_once(split.inputs)
    for some, theirs in zip(answers.split(size), targets.split(size), strict=True):
        total += float(recipe.loss_fn(some, theirs)) * len(theirs)
        wrong.append(finite_mistakes(some, theirs, recipe.loss_fn))
    loss = total / len(targets)
    classes = recipe.loss == "cross-entropy" and answers.dim() == 2 and not targets.is_floating_point()
    calibrated = calibrated_loss(answers, targets) if classes and math.isfinite(loss) else loss
    return Validation(loss, float(torch.cat(wrong).mean()), calibrated)


def calibrated_loss(answers: Tensor, targets: Tensor) -> float:
    """The least mean cross-entropy over all temperatures: ``min_b mean_i CE(b * answers_i, targets_i)``, in nat.

    The loss punishes a network that is right but not sure of it, as label smoothing and noisy labels make it; the order
    of networks by loss is then that of their confidence. With the factor that suits each network best this is gone,
    and what is left is as fine as a loss and about what the error is about. The loss is convex in ``b``, which is
    looked for between ``1 / SURE`` and ``SURE``.

    Args:
        answers: (n, classes).
        targets: (n,) classes.
    """
    answers = answers.double()
    right = answers.gather(1, targets[:, None])[:, 0]
    low, high = -math.log(SURE), math.log(SURE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = (functional.softmax(math.exp(middle) * answers, dim=1) * answers).sum(dim=1)
        if float((expected - right).mean()) > 0:  # the slope in b
            high = middle
        else:
            low = middle
    return float(functional.cross_entropy(math.exp((low + high) / 2) * answers, targets))
