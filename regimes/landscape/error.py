"""Classification error and loss over a whole split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regimes.data.dataset import Split
from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import LossFn, Metric, MetricValues, Probe, Trained, Variable

# Numbers in the inputs of one forward pass: bounds memory, never changes a result beyond rounding. On a CPU activations
# should fit into the cache, a card wants large batches.
PASS = {"cpu": 2**19, "cuda": 2**24}


def images_at_once(inputs: Tensor, numbers: int | None = None, lanes: int = 1) -> int:
    """How many inputs make up so many numbers, or `PASS` for all lanes of a fleet, between 16 and 8192: on a CPU 170
    colour images of 32x32, all small digits."""
    numbers = numbers or PASS.get(inputs.device.type, PASS["cpu"]) // lanes
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
        return torch.cat([as_tensor(model(part)) for part in inputs.split(images_at_once(inputs))])


def as_tensor(answers: object) -> Tensor:
    """What a model has put out, if it is one tensor.

    Raises:
        UserError: it is something else.
    """
    if isinstance(answers, Tensor):
        return answers
    raise UserError(f"the model puts out {type(answers).__name__}; one tensor is expected: wrap it and return that")


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
            answers = as_tensor(model(inputs))
            wrong.append(finite_mistakes(answers, targets, loss_fn))
            total += float(loss_fn(answers, targets)) * len(targets)
    count = len(split.targets)
    each = torch.cat(wrong)
    if split.targets.is_floating_point() or split.targets.dim() > 1 or each.isnan().any():
        error = Estimate(float(each.mean()), float(each.std()) / count**0.5, count)
    else:
        error = Estimate.fraction(int(each.sum()), count)
    return error, Estimate(total / count, float("nan"), count, "nat")


def mean_error(model: nn.Module, split: Split, loss_fn: LossFn) -> float:
    """The error over a split, in eval mode; a network that has diverged has one too."""
    size = images_at_once(split.inputs)
    with evaluating(model):
        parts = zip(split.inputs.split(size), split.targets.split(size), strict=True)
        each = torch.cat([mistakes(as_tensor(model(inputs)), targets, loss_fn) for inputs, targets in parts])
    return float(each.mean()) if split.targets.is_floating_point() else float(each.sum()) / len(each)


def finite_mistakes(answers: Tensor, targets: Tensor, loss_fn: LossFn) -> Tensor:
    """The error of each input as `mistakes` has it, NaN where the answer is no number."""
    wrong = mistakes(answers, targets, loss_fn)
    lost = ~answers.reshape(len(answers), -1).isfinite().all(dim=1)
    return wrong.masked_fill(lost, torch.nan) if bool(lost.any()) else wrong


def mistakes(answers: Tensor, targets: Tensor, loss_fn: LossFn) -> Tensor:
    """The error of each input (n,), float64: 1 for a wrong class and 0 for the right one, or the share of wrong classes
    where an input has several (n, ...); where targets are numbers, the loss of that input alone."""
    if not targets.is_floating_point():
        wrong = (answers.argmax(dim=1) != targets).double()
        return wrong.flatten(1).mean(dim=1) if wrong.dim() > 1 else wrong
    alone: Tensor = torch.func.vmap(lambda answer, target: loss_fn(answer[None], target[None]))(answers, targets)
    return alone.double()


@dataclass(frozen=True)
class ErrorOptions:
    """Options of the metric "error": none."""


def _measure(subjects: Sequence[Trained], probe: Probe, options: ErrorOptions) -> MetricValues:
    (subject,) = subjects
    train_error, train_loss = error_and_loss(subject.model, probe.data.train, probe.loss_fn)
    test_error, test_loss = error_and_loss(subject.model, probe.data.test, probe.loss_fn)
    return {
        "train_error": train_error,
        "train_loss": train_loss,
        "final_test_error": test_error,
        "test_loss": test_loss,
    }


ERROR = Metric(
    name="error",
    subject="model",
    options=ErrorOptions,
    table="error",
    variables={
        "train_error": Variable("1", "training error, not augmented, last weights", error=True),
        "train_loss": Variable("nat", "training loss, not augmented, last weights"),
        "final_test_error": Variable("1", "test error, last weights", error=True),
        "test_loss": Variable("nat", "test loss, last weights"),
    },
    measure=_measure,
    work=lambda options, images: 1.3 * images,
)
