"""Error of a network: the task is inferred from outputs, targets and loss, or given as a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from regimes.errors import UserError
from regimes.losses.functions import IGNORED, LossFn, logits, loss_value

FAR = 10.0  # logit at which a classification loss has nearly no slope, and a regression loss a large one


@dataclass(frozen=True)
class ErrorFunction:
    """An error, or a score, of one's own: ``function(outputs, targets) -> number`` over a whole split.

    Attributes:
        function: (outputs, targets) -> number; outputs as the model returns them.
        name: name for captions, e.g. "F1".
        unit: unit of the value; "1" for fractions.
        better: whether a lower or a higher value is better. Of a score, the error is ``best - value``.
        best: largest possible score.
    """

    function: Callable[[Any, Tensor], Any]
    name: str
    unit: str = "1"
    better: Literal["lower", "higher"] = "lower"
    best: float = 1.0

    def __call__(self, outputs: Any, targets: Tensor) -> float:
        """Return the error.

        Raises:
            UserError: the function raises, or does not return one number.
        """
        try:
            value = float(self.function(outputs, targets))
        except Exception as error:  # a user's function may raise anything
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"error function '{self.name}' raised {type(error).__name__}: {reason}") from error
        return self.best - value if self.better == "higher" else value

    @property
    def title(self) -> str:
        """The error in words: the name, or for a score e.g. "1 - F1"."""
        return f"{self.best:g} - {self.name}" if self.better == "higher" else self.name


class InputErrors(NamedTuple):
    """Errors of inputs: the sum over each input's predictions (n,), and their number (n,); both float64.

    Every predicted token counts the same, however the inputs are padded.
    """

    total: Tensor
    predictions: Tensor

    def mean(self) -> Tensor:
        """Error of the split, ``total.sum() / predictions.sum()``."""
        return self.total.sum() / self.predictions.sum()


def joined_errors(parts: Sequence[InputErrors]) -> InputErrors:
    """Return the errors of the inputs of several batches."""
    return InputErrors(*(torch.cat(each) for each in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Task:
    """Rule that judges predictions.

    Attributes:
        kind: "class": the largest logit is the prediction; "binary": a logit above 0 is; "loss": the error is the loss
            of each input alone.
        dimension: dimension of the classes in the outputs; for "class" only.
    """

    kind: Literal["class", "binary", "loss"]
    dimension: int = 1

    @property
    def fraction(self) -> bool:
        """Whether the error is a fraction of wrong predictions."""
        return self.kind != "loss"

    def rows(self, outputs: Tensor) -> Tensor:
        """Return the logits of each prediction (n, predictions, classes); a binary one has the logits 0 and z."""
        if self.kind == "binary":
            flat = outputs.reshape(len(outputs), -1)
            return torch.stack([torch.zeros_like(flat), flat], dim=-1)
        moved = outputs.movedim(self.dimension, -1)
        return moved.reshape(len(outputs), -1, moved.shape[-1])

    def errors(self, outputs: Any, targets: Tensor, loss_fn: LossFn) -> InputErrors:
        """Return the errors of each input."""
        if self.kind == "loss":
            alone = _losses_alone(outputs, targets, loss_fn).double()
            return InputErrors(alone, torch.ones_like(alone))
        predicted = logits(outputs)
        if self.kind == "binary":
            wrong = (predicted > 0) != (targets.reshape(predicted.shape) > 0.5)
            counted = targets.reshape(predicted.shape) != IGNORED
        else:
            wanted = targets.argmax(self.dimension) if targets.is_floating_point() else targets
            wrong = predicted.argmax(dim=self.dimension) != wanted
            counted = wanted != _ignored(loss_fn)
        rows = len(targets)
        count = counted.reshape(rows, -1).double().sum(dim=1)
        return InputErrors((wrong & counted).reshape(rows, -1).double().sum(dim=1), count)


def infer_task(outputs: Any, targets: Tensor, loss_fn: LossFn) -> Task:
    """Return the task that outputs (n, ...), targets (n, ...) and loss belong to.

    Class numbers match logits with one dimension more, the one of the classes. Where two dimensions fit (a sequence as
    long as there are classes), it is the one along which raising the target's logit lowers the loss. As many targets as
    logits are binary if the loss keeps falling, however far a logit lies on the target's side; else the error is the
    loss. Probabilities as targets are judged by the largest.
    """
    if not isinstance(outputs, Tensor):
        try:
            outputs = logits(outputs)
        except UserError:
            return Task("loss")
    if outputs.numel() == targets.numel():
        several = targets.is_floating_point() and outputs.dim() > 1 and outputs.shape[1] > 1
        if several and outputs.shape == targets.shape and _shift_invariant(outputs, targets, loss_fn):
            return Task("class")
        return Task("binary" if _keeps_falling(outputs, targets, loss_fn) else "loss")
    if targets.is_floating_point():
        return Task("loss")
    shape = tuple(outputs.shape)
    fits = [d for d in range(1, len(shape)) if shape[:d] + shape[d + 1 :] == tuple(targets.shape)]
    if len(fits) > 1:
        slopes = {d: _slope_at_target(outputs, targets, loss_fn, d) for d in fits}
        fits = sorted(fits, key=lambda d: slopes[d])
    return Task("class", fits[0]) if fits else Task("loss")


def task_of_outputs(outputs: Tensor) -> Task:
    """Return the task that outputs alone suggest: classes in the last dimension of sequences (n, t, classes) and in the
    second of all others; one logit per input (n,) or (n, 1) is binary."""
    if outputs.dim() == 1 or outputs.shape[1:] == (1,):
        return Task("binary")
    return Task("class", 2 if outputs.dim() == 3 else 1)


def error_name(task: Task, error: ErrorFunction | None, loss: str) -> tuple[str, str]:
    """Return (name, unit) of the error of a task under the loss of a name."""
    if error is not None:
        return error.title, error.unit
    return ("error", "1") if task.fraction else (loss, "loss")


def _ignored(loss_fn: Any) -> int:
    """The target that a loss ignores: its ``ignore_index``, or -100."""
    keywords = getattr(loss_fn, "keywords", {})
    return int(keywords.get("ignore_index", getattr(loss_fn, "ignore_index", IGNORED)))


def _losses_alone(outputs: Any, targets: Tensor, loss_fn: LossFn) -> Tensor:
    if isinstance(outputs, Tensor):
        alone: Tensor = torch.func.vmap(lambda answer, target: loss_fn(answer[None], target[None]))(outputs, targets)
        return alone
    rows = range(len(targets))
    return torch.stack([loss_value(loss_fn, _row(outputs, row), targets[row : row + 1]) for row in rows]).reshape(-1)


def _row(outputs: Any, row: int) -> Any:
    return tree_map(lambda each: each[row : row + 1] if isinstance(each, Tensor) and each.dim() else each, outputs)


def _noise(like: Tensor) -> Tensor:
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(like.device, like.dtype)


def _slope(outputs: Tensor, targets: Tensor, loss_fn: LossFn) -> Tensor | None:
    """Gradient of the loss in the outputs; None if it cannot be computed."""
    try:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss_fn(leaf, targets).sum(), leaf)
        return slope
    except (RuntimeError, ValueError, IndexError, TypeError, UserError):
        return None


def _slope_at_target(outputs: Tensor, targets: Tensor, loss_fn: LossFn, dimension: int) -> float:
    slope = _slope(_noise(outputs), targets, loss_fn)
    if slope is None:
        return float("inf")
    counted = targets != _ignored(loss_fn)
    at = slope.gather(dimension, targets.clamp(min=0).unsqueeze(dimension)).squeeze(dimension)
    return float(at[counted].sum())


def _keeps_falling(outputs: Tensor, targets: Tensor, loss_fn: LossFn) -> bool:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randint(0, 2, targets.shape, generator=generator).to(targets)
    sign = (2 * wanted - 1).reshape(outputs.shape).to(outputs.dtype)
    slope = _slope(FAR * sign, wanted, loss_fn)
    return slope is not None and bool((slope * sign <= 0).all())


def _shift_invariant(outputs: Tensor, targets: Tensor, loss_fn: LossFn) -> bool:
    """Whether the loss does not change if a constant is added to all logits of an input: a softmax."""
    noise = _noise(outputs)
    slope = _slope(noise, torch.softmax(_noise(targets).flip(0, 1), dim=1), loss_fn)
    return slope is not None and bool((slope.sum(1).abs() <= 1e-4 * slope.abs().sum(1)).all())
