"""Validation of a trial: error, loss, and loss after temperature scaling (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from regimes.config.recipe import Recipe
from regimes.data.dataset import Split
from regimes.experiment.context import RunContext
from regimes.landscape.error import errors_or_nan, scalar_loss, whole_outputs
from regimes.landscape.metric import in_nats
from regimes.losses.functions import logits
from regimes.losses.tasks import error_name, infer_task

MAX_SCALE = 20.0  # largest inverse temperature, and largest temperature
BISECTIONS = 40  # of the interval of log b


@dataclass(frozen=True)
class Validation:
    """Evaluation of a network on a split.

    Attributes:
        loss: mean loss over the images.
        error: the recipe's error: a fraction of wrong predictions, an error function of one's own, or the loss.
        calibrated: loss after temperature scaling, see `calibrated_loss`; the plain loss unless it is the cross-entropy
            of classes.
    """

    loss: float
    error: float
    calibrated: float


def validate(model: nn.Module, split: Split, recipe: Recipe) -> Validation:
    """Evaluate a network in eval mode, in one pass over the split."""
    answers, targets = whole_outputs(model, split.inputs), split.targets
    loss = scalar_loss(recipe.loss_fn, answers, targets)
    task = infer_task(answers, targets, recipe.loss_fn)
    if recipe.error_function is not None:
        error = recipe.error_function(answers, targets)
    else:
        error = float(errors_or_nan(task.errors(answers, targets, recipe.loss_fn), answers).mean())
    if recipe.loss != "cross-entropy" or task.kind != "class" or targets.is_floating_point() or not math.isfinite(loss):
        return Validation(loss, error, loss)
    counted = task.counted(targets, recipe.loss_fn).reshape(-1)
    rows = task.rows(logits(answers)).flatten(0, 1)
    return Validation(loss, error, calibrated_loss(rows[counted], targets.reshape(-1)[counted]))


def units_of(context: RunContext, recipe: Recipe) -> dict[str, Any]:
    """Return {"error": {title, unit, fraction}, "loss": {...}} for captions; ``fraction``: whether it is a share wrong.

    The error is a fraction of wrong predictions, an error function of one's own, or the loss itself.
    """
    title, unit = error_name(context.task(recipe), recipe.error_function, recipe.loss)
    return {
        "error": {"title": title, "unit": unit, "fraction": context.fraction(recipe)},
        "loss": {"title": "loss", "unit": "nat" if in_nats(recipe.loss) else "loss", "fraction": False},
    }


def calibrated_loss(answers: Tensor, targets: Tensor) -> float:
    """Return the cross-entropy after temperature scaling: ``min_b mean_i CE(b * answers_i, targets_i)``, in nats.

    The plain loss also depends on how confident a network is, which label smoothing and noisy labels change. At the
    best temperature of each network this is removed, while the loss stays more fine-grained than the error. The loss is
    convex in ``b``, the inverse temperature, which is found by bisection between ``1 / MAX_SCALE`` and ``MAX_SCALE``.

    The value is at least `loss_floor`: if all predictions are right, the best temperature is the coldest one, and the
    loss tends to 0, which says more than so many predictions can show.

    Args:
        answers: (n, classes) logits.
        targets: (n,) classes.
    """
    answers = answers.double()
    right = answers.gather(1, targets[:, None])[:, 0]
    low, high = -math.log(MAX_SCALE), math.log(MAX_SCALE)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        expected = (functional.softmax(math.exp(middle) * answers, dim=1) * answers).sum(dim=1)
        if float((expected - right).mean()) > 0:  # derivative with respect to b
            high = middle
        else:
            low = middle
    loss = float(functional.cross_entropy(math.exp((low + high) / 2) * answers, targets))
    return max(loss, loss_floor(len(targets)))


def loss_floor(count: int) -> float:
    """Return the smallest loss that ``count`` predictions can show, ``log((n + 2) / (n + 1))`` nats.

    That of the next prediction by Laplace's rule of succession: after n right ones out of n, it is right with
    probability ``(n + 1) / (n + 2)``.
    """
    return math.log((count + 2) / (count + 1))
