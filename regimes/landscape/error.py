"""Error and loss over a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regimes.data.dataset import Split
from regimes.data.inputs import Inputs, call, values_per_input
from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import LossFn, Metric, MetricValues, Probe, Trained, Variable
from regimes.losses.functions import IGNORED, logits, loss_value
from regimes.losses.tasks import ErrorFunction, InputErrors, Task, infer_task, joined_errors
from regimes.models.eval_mode import eval_mode

# Input values per forward pass. This bounds memory and does not change results beyond rounding. On a CPU activations
# should fit into the cache; a GPU needs large batches.
INPUT_VALUES_PER_PASS = {"cpu": 2**19, "cuda": 2**24}
JACKKNIFE_GROUPS = 20
MAX_OUTPUT_BYTES = 2**33


def inputs_per_pass(inputs: Inputs, numbers: int | None = None, lanes: int = 1) -> int:
    """Return the number of inputs per forward pass, between 16 and 8192.

    On a CPU this is 170 colour images of 32x32 pixels.

    Args:
        inputs: (n, ...), on the device of the pass.
        numbers: input values per pass; None: `INPUT_VALUES_PER_PASS`, divided by ``lanes``.
        lanes: number of networks evaluated together.
    """
    numbers = numbers or INPUT_VALUES_PER_PASS.get(inputs.device.type, INPUT_VALUES_PER_PASS["cpu"]) // lanes
    return min(8192, max(16, numbers // max(1, values_per_input(inputs))))


def outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the model's outputs (n, ...) in eval mode.

    Raises:
        UserError: the model does not return one tensor (or a dict with logits), with one row per input.
    """
    with eval_mode(model):
        return torch.cat(
            [checked_output(batch_outputs(model, part), part) for part in inputs.split(inputs_per_pass(inputs))]
        )


def checked_output(answers: object, inputs: Inputs) -> Tensor:
    """Return a model's outputs if they are one tensor, or the logits of a dict, with one row per input.

    Raises:
        UserError: they are anything else.
    """
    found = logits(answers)
    if not found.dim() or len(found) != len(inputs):
        raise UserError(
            f"for {len(inputs)} inputs the model returns outputs of shape {tuple(found.shape)}; the first dimension "
            "must be the batch (batch_first)"
        )
    return found


def whole_outputs(model: nn.Module, inputs: Inputs) -> Any:
    """Return the model's outputs as it returns them, a tensor or a tree of tensors, concatenated, in eval mode."""
    parts, held = [], 0
    with eval_mode(model):
        for part in inputs.split(inputs_per_pass(inputs)):
            parts.append(batch_outputs(model, part))
            held += sum(each.nbytes for each in tree_leaves(parts[-1]) if isinstance(each, Tensor))
            if held > MAX_OUTPUT_BYTES:
                raise UserError(f"the outputs of {len(inputs)} inputs need more than 8 GB; use fewer inputs")
    return joined_outputs(parts)


def batch_outputs(model: nn.Module, inputs: Inputs) -> Any:
    """Return what the model returns for a batch; a number for a single input becomes a batch of one."""
    answers = call(model, inputs)
    return answers[None] if isinstance(answers, Tensor) and not answers.dim() and len(inputs) == 1 else answers


def joined_outputs(parts: Sequence[Any]) -> Any:
    """Return the outputs of several batches, tensors or trees of tensors, as one."""
    return tree_map(lambda *each: torch.cat(each) if isinstance(each[0], Tensor) and each[0].dim() else each[0], *parts)


def network_task(model: nn.Module, split: Split, loss_fn: LossFn) -> Task:
    """Return the task that a network, its data and its loss belong to, from two inputs that have a target."""
    counted = split.targets.reshape(len(split.targets), -1).ne(IGNORED).any(dim=1).nonzero()[:2, 0]
    with eval_mode(model):
        answers = batch_outputs(model, split.inputs[counted])
    return infer_task(answers, split.targets[counted], loss_fn)


def error_and_loss(
    model: nn.Module, split: Split, loss_fn: LossFn, error: ErrorFunction | None = None
) -> tuple[Estimate, Estimate]:
    """Return the error and the loss over a split, in eval mode.

    The error of classes is the fraction of wrong predictions with its binomial standard error; of several predictions
    per input, that fraction with its standard error over the inputs; where the error is the loss, the mean with its
    standard error. An error function of one's own has a jackknife standard error. The standard error of the loss is
    NaN, because a loss function returns only the value of a batch.
    """
    answers, targets = whole_outputs(model, split.inputs), split.targets
    loss = Estimate(scalar_loss(loss_fn, answers, targets), float("nan"), len(targets), "nat")
    if error is not None:
        return function_error(error, answers, targets), loss
    task = infer_task(answers, targets, loss_fn)
    return error_estimate(task, errors_or_nan(task.errors(answers, targets, loss_fn), answers)), loss


def mean_error(model: nn.Module, split: Split, loss_fn: LossFn, error: ErrorFunction | None = None) -> float:
    """Return the error over a split, in eval mode; defined for diverged networks too."""
    if error is not None:
        return error(whole_outputs(model, split.inputs), split.targets)
    task: Task | None = None
    judged: list[InputErrors] = []
    size = inputs_per_pass(split.inputs)
    with eval_mode(model):
        for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
            answers = batch_outputs(model, inputs)
            task = task or infer_task(answers, targets, loss_fn)
            judged.append(task.errors(answers, targets, loss_fn))
    return float(joined_errors(judged).mean())


def scalar_loss(loss_fn: LossFn, answers: Any, targets: Tensor) -> float:
    """Return the loss of outputs as a number.

    Raises:
        UserError: the loss returns anything else than one number.
    """
    value = loss_value(loss_fn, answers, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"the loss returned {got}; expected one number, the mean (or sum) over the batch")
    return float(value.detach())


def error_estimate(task: Task, judged: InputErrors) -> Estimate:
    """Return the error of a split, with its standard error, from the errors of its inputs."""
    count = len(judged.total)
    if task.fraction and bool((judged.predictions == 1).all()) and not judged.total.isnan().any():
        return Estimate.fraction(int(judged.total.sum()), count)
    return Estimate(float(judged.mean()), ratio_stderr(judged), count)


def ratio_stderr(judged: InputErrors) -> float:
    """Return the standard error over the inputs of ``sum total / sum predictions``, linearised."""
    rest = (judged.total - judged.mean() * judged.predictions) / judged.predictions.mean()
    return float(rest.std()) / len(rest) ** 0.5


def function_error(error: ErrorFunction, answers: Any, targets: Tensor) -> Estimate:
    """Return an error function's value over all outputs, with a jackknife standard error over 20 groups of inputs."""
    value, left_out = error(answers, targets), leave_out_values(error, answers, targets)
    return Estimate(value, jackknife_stderr(left_out), len(targets))


def leave_out_values(function: Callable[[Any, Tensor], float], answers: Any, targets: Tensor) -> Tensor:
    """Return a function's values (groups,) without each of 20 random groups of inputs."""
    groups = min(JACKKNIFE_GROUPS, len(targets))
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0)).to(targets.device)
    values = []
    for number in range(groups):
        kept = order[torch.arange(len(order), device=order.device) % groups != number]
        values.append(function(_rows(answers, kept), targets[kept]))
    return torch.tensor(values, dtype=torch.float64)


def _rows(answers: Any, kept: Tensor) -> Any:
    return tree_map(lambda each: each[kept] if isinstance(each, Tensor) and each.dim() else each, answers)


def jackknife_stderr(left_out: Tensor) -> float:
    """Return the standard error from the values (groups,) without each group."""
    groups = len(left_out)
    if groups < 2:
        return float("nan")
    return float((groups - 1) / groups * (left_out - left_out.mean()).square().sum()) ** 0.5


def input_errors(answers: Any, targets: Tensor, loss_fn: LossFn) -> InputErrors:
    """Return the errors of each input; see `infer_task`."""
    return infer_task(answers, targets, loss_fn).errors(answers, targets, loss_fn)


def errors_or_nan(judged: InputErrors, answers: Any) -> InputErrors:
    """Return the errors of inputs, but NaN where the output is not finite."""
    try:
        found = logits(answers)
    except UserError:
        return judged
    lost = ~found.reshape(len(found), -1).isfinite().all(dim=1)
    return InputErrors(judged.total.masked_fill(lost, torch.nan), judged.predictions) if bool(lost.any()) else judged


@dataclass(frozen=True)
class ErrorOptions:
    """Options of the metrics "error" and "val_loss"; they have none."""


def _measure(subjects: Sequence[Trained], probe: Probe, options: ErrorOptions) -> MetricValues:
    (subject,) = subjects
    train_error, train_loss = error_and_loss(subject.model, probe.data.train, probe.loss_fn, probe.error)
    test_error, test_loss = error_and_loss(subject.model, probe.data.test, probe.loss_fn, probe.error)
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


def _measure_validation(subjects: Sequence[Trained], probe: Probe, options: ErrorOptions) -> MetricValues:
    (subject,) = subjects
    return {"val_loss": error_and_loss(subject.model, probe.data.val, probe.loss_fn, probe.error)[1]}


VAL_LOSS = Metric(
    name="val_loss",
    subject="model",
    options=ErrorOptions,
    table="error",
    variables={"val_loss": Variable("nat", "validation loss, last weights")},
    measure=_measure_validation,
    work=lambda options, images: 0.3 * images,
)
