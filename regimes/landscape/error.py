"""Classification error and loss over a whole split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regimes.data.dataset import Split
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import LossFn, Measured, Metric, Probe, Trained, Variable

PASS = 2**19  # numbers in the inputs of one forward pass: bounds memory, never changes a number beyond rounding


def images_at_once(inputs: Tensor, numbers: int = PASS) -> int:
    """How many inputs make up so many numbers, between 16 and 8192: 170 colour images of 32x32, all small digits."""
    return min(8192, max(16, numbers // max(1, inputs[0].numel())))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put every module of a model into eval mode, without gradients, and put each back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in training:
            module.training = True


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's outputs (n, classes) in eval mode."""
    with evaluating(model):
        return torch.cat([model(part) for part in inputs.split(images_at_once(inputs))])


def error_and_loss(model: nn.Module, split: Split, loss_fn: LossFn) -> tuple[Estimate, Estimate]:
    """Return the error and the mean loss over a split, in eval mode.

    The error is the fraction of wrong answers, its standard error binomial over the images; where targets are numbers
    rather than classes, it is the mean loss of single inputs, with their spread. The loss is exact for the images
    (stderr NaN: the loss function may be of any kind and gives only means).
    """
    wrong: list[Tensor] = []
    total = 0.0
    with evaluating(model):
        size = images_at_once(split.inputs)
        for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
            answers = model(inputs)
            wrong.append(mistakes(answers, targets, loss_fn))
            total += float(loss_fn(answers, targets)) * len(targets)
    count = len(split.targets)
    each = torch.cat(wrong)
    error = (
        Estimate(float(each.mean()), float(each.std()) / count**0.5, count)
        if split.targets.is_floating_point()
        else Estimate.fraction(int(each.sum()), count)
    )
    return error, Estimate(total / count, float("nan"), count, "nat")


def mistakes(answers: Tensor, targets: Tensor, loss_fn: LossFn) -> Tensor:
    """The error of each input (n,), float64: 1 for a wrong class and 0 for the right one; where targets are numbers,
    the loss of that input alone."""
    if not targets.is_floating_point():
        return (answers.argmax(dim=1) != targets).double()
    alone: Tensor = torch.func.vmap(lambda answer, target: loss_fn(answer[None], target[None]))(answers, targets)
    return alone.double()


@dataclass(frozen=True)
class ErrorOptions:
    """Options of the metric "error": none."""


def _measure(subjects: Sequence[Trained], probe: Probe, options: ErrorOptions) -> Measured:
    (subject,) = subjects
    train_error, train_loss = error_and_loss(subject.model, probe.data.train, probe.loss_fn)
    _, test_loss = error_and_loss(subject.model, probe.data.test, probe.loss_fn)
    return {"train_error": train_error, "train_loss": train_loss, "test_loss": test_loss}


ERROR = Metric(
    name="error",
    subject="model",
    options=ErrorOptions,
    table="error",
    variables={
        "train_error": Variable("1", "training error, not augmented, last weights", error=True),
        "train_loss": Variable("nat", "training loss, not augmented, last weights"),
        "test_loss": Variable("nat", "test loss, last weights"),
    },
    measure=_measure,
    work=lambda options, images: 1.3 * images,
)
