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
    """Return the fraction of wrong answers and the mean loss over a split, in eval mode.

    The error's standard error is binomial over the images; the loss is exact for them (stderr NaN: the loss function
    may be of any kind and gives only means).
    """
    wrong = 0
    total = 0.0
    with evaluating(model):
        size = images_at_once(split.inputs)
        for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
            answers = model(inputs)
            wrong += int((answers.argmax(dim=1) != targets).sum())
            total += float(loss_fn(answers, targets)) * len(targets)
    count = len(split.targets)
    return Estimate.fraction(wrong, count), Estimate(total / count, float("nan"), count, "nat")


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
        "train_error": Variable("1", "training error, fraction, not augmented, last weights"),
        "train_loss": Variable("nat", "training loss, not augmented, last weights"),
        "test_loss": Variable("nat", "test loss, last weights"),
    },
    measure=_measure,
    work=lambda options, images: 1.3 * images,
)
