"""Error of a network: the task is inferred from outputs, targets and loss, or given as a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from regimes.device_faults import reraise_device_fault
from regimes.errors import UserError
from regimes.losses.functions import IGNORED, LossFn, is_known, logits, loss_value

TRIED_ROWS = 8  # inputs on which a loss is tried
FAR = 10.0  # logit at which a classification loss has nearly no slope, and a regression loss a large one


@dataclass(frozen=True)
class ErrorFunction:
    """An error, or a score, of one's own: ``function(outputs, targets) -> number`` over a whole split.

    Attributes:
        function: (outputs, targets) -> number; outputs as the model returns them.
        name: name for captions, e.g. "F1".
        unit: unit of the value; "1" for errors between 0 and 1, any other text for errors without such bounds.
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
            reraise_device_fault(error)
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

    def counted(self, targets: Tensor, loss_fn: LossFn) -> Tensor:
        """Return which targets count: all but -100 and the loss's own ``ignore_index``."""
        return (targets != IGNORED) & (targets != _ignored(loss_fn))

    def errors(self, outputs: Any, targets: Tensor, loss_fn: LossFn) -> InputErrors:
        """Return the errors of each input."""
        if self.kind == "loss":
            alone = _losses_alone(outputs, targets, loss_fn).double()
            return InputErrors(alone, torch.ones_like(alone))
        predicted = logits(outputs)
        if self.kind == "binary":
            wrong = (predicted > 0) != (targets.reshape(predicted.shape) > 0.5)
            counted = self.counted(targets, loss_fn).reshape(predicted.shape)
        else:
            wanted = targets.argmax(self.dimension) if targets.is_floating_point() else targets
            wrong = predicted.argmax(dim=self.dimension) != wanted
            counted = self.counted(wanted, loss_fn)
        rows = len(targets)
        count = counted.reshape(rows, -1).double().sum(dim=1)
        return InputErrors((wrong & counted).reshape(rows, -1).double().sum(dim=1), count)


def infer_task(outputs: Any, targets: Tensor, loss_fn: LossFn) -> Task:
    """Return the task that outputs (n, ...), targets (n, ...) and loss belong to.

    Class numbers match logits with one dimension more, the one of the classes, if raising the target's logit lowers the
    loss, and more than raising the others does; that also decides where two dimensions fit (a sequence as long as there
    are classes). As many targets as logits are binary if the loss keeps falling, however far a logit lies on the
    target's side. Probabilities as targets are judged by the largest. Else the error is the loss. The loss is tried on
    a few inputs.

    Raises:
        UserError: outputs (n,) and targets (n, 1), or the reverse, which the loss would broadcast to (n, n).
    """
    try:
        found = logits(outputs)
    except UserError:
        return Task("loss")
    fits = [d for d in range(1, found.dim()) if found.shape[:d] + found.shape[d + 1 :] == targets.shape]
    same = found.numel() == targets.numel()
    if not same and not targets.is_floating_point() and len(fits) == 1 and is_known(loss_fn):
        return Task("class", fits[0])
    trial = _Trial(outputs, found, targets, loss_fn)
    if same:
        trial.refuse_broadcasting()
        several = targets.is_floating_point() and found.dim() > 1 and found.shape[1] > 1
        if several and found.shape == targets.shape and trial.is_shift_invariant():
            return Task("class")
        return Task("binary" if trial.keeps_falling() else "loss")
    if targets.is_floating_point():
        return Task("loss")
    agreeing = [d for d in fits if trial.lowers_at_target(d)]
    return Task("class", agreeing[0]) if agreeing else Task("loss")


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
        alone: Tensor = torch.func.vmap(lambda answer, target: loss_value(loss_fn, answer[None], target[None]))(
            outputs, targets
        )
        return alone
    rows = range(len(targets))
    return torch.stack([loss_value(loss_fn, _row(outputs, row), targets[row : row + 1]) for row in rows]).reshape(-1)


def _row(outputs: Any, row: int) -> Any:
    return tree_map(lambda each: each[row : row + 1] if isinstance(each, Tensor) and each.dim() else each, outputs)


@contextmanager
def _any_kernels() -> Iterator[None]:
    """Allow kernels that are not deterministic: the signs of a trial do not depend on rounding."""
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)


class _Trial:
    """A loss, tried on noise in place of the logits of a few inputs that have a target."""

    def __init__(self, outputs: Any, found: Tensor, targets: Tensor, loss_fn: LossFn) -> None:
        rows = (targets.reshape(len(targets), -1) != _ignored(loss_fn)).any(dim=1).nonzero()[:TRIED_ROWS, 0]
        if len(found) != len(targets):
            rows = rows[:0]
        self.outputs, self.loss_fn = outputs, loss_fn
        self.logits, self.targets, self.rows = found.detach()[rows], targets[rows], rows

    def slope(self, values: Tensor, targets: Tensor) -> Tensor | None:
        """Gradient of the loss in the logits; None if it cannot be computed."""
        try:
            with torch.enable_grad(), _any_kernels():
                leaf = values.detach().requires_grad_()
                (slope,) = torch.autograd.grad(loss_value(self.loss_fn, self._with(leaf), targets).sum(), leaf)
            return slope
        except Exception as error:  # a user's function may raise anything
            reraise_device_fault(error)
            return None

    def _with(self, values: Tensor) -> Any:
        """The model's outputs with other logits."""
        if isinstance(self.outputs, Tensor):
            return values
        rows = tree_map(lambda each: each[self.rows] if isinstance(each, Tensor) and each.dim() else each, self.outputs)
        rows["logits"] = values
        return rows

    def noise(self) -> Tensor:
        """Normal numbers in the shape of the logits."""
        drawn = torch.randn(self.logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return drawn.to(self.logits.device, self.logits.dtype)

    def refuse_broadcasting(self) -> None:
        """Raise `UserError` if the loss changes when the logits take the targets' shape."""
        if is_known(self.loss_fn) or self.logits.shape == self.targets.shape or not len(self.rows):
            return
        try:
            with _any_kernels():
                given = loss_value(self.loss_fn, self._with(self.noise()), self.targets)
                fitted = loss_value(self.loss_fn, self._with(self.noise().reshape(self.targets.shape)), self.targets)
        except Exception as error:  # a user's function may raise anything
            reraise_device_fault(error)
            return
        if not torch.allclose(given, fitted, rtol=1e-4):
            shapes = f"{tuple(self.logits.shape[1:])} and targets {tuple(self.targets.shape[1:])} per input"
            raise UserError(
                f"outputs have shape {shapes}, which the loss broadcasts; let the model return the targets'"
            )

    def lowers_at_target(self, dimension: int) -> bool:
        """Whether raising the target's logit lowers the loss, and more than raising the others does on average."""
        slope = self.slope(self.noise(), self.targets)
        counted = self.targets != _ignored(self.loss_fn)
        if slope is None:  # not to be tried; shapes decide
            return True
        if not counted.any() or int(self.targets[counted].max()) >= slope.shape[dimension]:
            return False
        place = self.targets.masked_fill(~counted, 0).unsqueeze(dimension)
        at = slope.gather(dimension, place).squeeze(dimension)[counted]
        rest = (slope.sum(dimension)[counted] - at) / max(1, slope.shape[dimension] - 1)
        return bool((at <= 0).all() and (at <= rest).all() and (at < rest).any())

    def keeps_falling(self) -> bool:
        """Whether the loss falls, however far a logit lies on its target's side."""
        generator = torch.Generator().manual_seed(0)
        wanted = torch.randint(0, 2, self.targets.shape, generator=generator).to(self.targets)
        sign = (2 * wanted - 1).reshape(self.logits.shape).to(self.logits.dtype)
        slope = self.slope(FAR * sign, wanted)
        return slope is not None and bool((slope * sign <= 0).all())

    def is_shift_invariant(self) -> bool:
        """Whether the loss does not change if a constant is added to all logits of an input: a softmax."""
        noise = self.noise()
        slope = self.slope(noise, torch.softmax(noise.flip(0, 1), dim=1).to(self.targets.dtype))
        return slope is not None and bool((slope.sum(1).abs() <= 1e-4 * slope.abs().sum(1)).all())
