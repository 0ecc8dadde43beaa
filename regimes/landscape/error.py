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

# Input values per forward pass. This bounds memory and does not change results beyond rounding. On a CPU activations
# should fit into the cache; a GPU needs large batches.
INPUT_VALUES_PER_PASS = {"cpu": 2**19, "cuda": 2**24}


def inputs_per_pass(inputs: Tensor, numbers: int | None = None, lanes: int = 1) -> int:
    """Return the number of inputs per forward pass, between 16 and 8192.

    On a CPU this is 170 colour images of 32x32 pixels.

    Args:
        inputs: (n, ...), on the device of the pass.
        numbers: input values per pass; None: `INPUT_VALUES_PER_PASS`, divided by ``lanes``.
        lanes: number of networks evaluated together.
    """
    numbers = numbers or INPUT_VALUES_PER_PASS.get(inputs.device.type, INPUT_VALUES_PER_PASS["cpu"]) // lanes
    return min(8192, max(16, numbers // max(1, inputs[0].numel())))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager for eval mode without gradients; restores the mode of every module on exit."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in training:
            module.training = True


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's outputs (n, classes) in eval mode.

    Raises:
        UserError: the model does not return one tensor.
    """
    with eval_mode(model):
        return torch.cat([checked_output(model(part)) for part in inputs.split(inputs_per_pass(inputs))])


def checked_output(answers: object) -> Tensor:
    """Return a model's output if it is one tensor.

    Raises:
        UserError: it is anything else.
    """
    if isinstance(answers, Tensor):
        return answers
    raise UserError(f"the model returns {type(answers).__name__}; expected one tensor: wrap the model to return one")


def error_and_loss(model: nn.Module, split: Split, loss_fn: LossFn) -> tuple[Estimate, Estimate]:
    """Return the error and the mean loss over a split, in eval mode.

    The error is the fraction of wrong predictions with its binomial standard error. For regression, or several targets
    per input, it is the mean of `input_errors` with the standard error of that mean. The standard error of the loss is
    NaN, because a loss function returns only the mean over a batch.
    """
    wrong: list[Tensor] = []
    total = 0.0
    with eval_mode(model):
        size = inputs_per_pass(split.inputs)
        for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
            answers = checked_output(model(inputs))
            wrong.append(input_errors_or_nan(answers, targets, loss_fn))
            total += float(loss_fn(answers, targets)) * len(targets)
    count = len(split.targets)
    each = torch.cat(wrong)
    if split.targets.is_floating_point() or split.targets.dim() > 1 or each.isnan().any():
        error = Estimate(float(each.mean()), float(each.std()) / count**0.5, count)
    else:
        error = Estimate.fraction(int(each.sum()), count)
    return error, Estimate(total / count, float("nan"), count, "nat")


def mean_error(model: nn.Module, split: Split, loss_fn: LossFn) -> float:
    """Return the error over a split, in eval mode; defined for diverged networks too."""
    size = inputs_per_pass(split.inputs)
    with eval_mode(model):
        parts = zip(split.inputs.split(size), split.targets.split(size), strict=True)
        each = torch.cat([input_errors(checked_output(model(inputs)), targets, loss_fn) for inputs, targets in parts])
    return float(each.mean()) if split.targets.is_floating_point() else float(each.sum()) / len(each)


def input_errors_or_nan(answers: Tensor, targets: Tensor, loss_fn: LossFn) -> Tensor:
    """Return the error of each input as `input_errors` does, but NaN where the output is not finite."""
    wrong = input_errors(answers, targets, loss_fn)
    lost = ~answers.reshape(len(answers), -1).isfinite().all(dim=1)
    return wrong.masked_fill(lost, torch.nan) if bool(lost.any()) else wrong


def input_errors(answers: Tensor, targets: Tensor, loss_fn: LossFn) -> Tensor:
    """Return the error of each input (n,), in float64.

    For classes: 1 if the predicted class is wrong, else 0; with several targets per input (n, ...), the fraction of
    wrong ones. For regression: the loss of that input alone.
    """
    if not targets.is_floating_point():
        wrong = (answers.argmax(dim=1) != targets).double()
        return wrong.flatten(1).mean(dim=1) if wrong.dim() > 1 else wrong
    alone: Tensor = torch.func.vmap(lambda answer, target: loss_fn(answer[None], target[None]))(answers, targets)
    return alone.double()


@dataclass(frozen=True)
class ErrorOptions:
    """Options of the metric "error"; it has none."""


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
