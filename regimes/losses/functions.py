"""Built-in losses, and how a loss is applied to what a model returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from regimes.errors import UserError

LossFn = Callable[[Any, Tensor], Tensor]
IGNORED = -100  # target that no loss or error counts, as in torch


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over all targets that are not `IGNORED`.

    Args:
        outputs: logits (n, classes); for several targets per input (n, ...), with the classes in the last dimension
            (n, ..., classes) or, as in torch, in the second (n, classes, ...). If both fit, a sequence has them in the
            last dimension and an image in the second.
        targets: class numbers (n,) or (n, ...), or probabilities of the shape of the logits.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
    """
    if targets.dim() > 1 and not targets.is_floating_point():
        last = outputs.shape[:-1] == targets.shape
        second = (outputs.shape[0], *outputs.shape[2:]) == tuple(targets.shape)
        if second and (not last or targets.dim() > 2):
            outputs = outputs.movedim(1, -1)
        if last or second:  # flat: with several dimensions torch has no deterministic kernel on a GPU
            outputs, targets = outputs.flatten(0, -2), targets.flatten()
    return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of logits; targets 0 or 1, as many as logits: one (n,), or labels (n, k)."""
    if outputs.numel() != targets.numel():
        raise UserError(
            f"binary-cross-entropy needs one logit per target, got outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)}"
        )
    return F.binary_cross_entropy_with_logits(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


def loss_value(loss_fn: LossFn, outputs: Any, targets: Tensor) -> Tensor:
    """Return ``loss_fn(outputs, targets)``.

    A loss of torch, or a built-in one, gets the logits if the model returns a dict that has them, in the shape of
    floating point targets; cross-entropy of tokens gets them with the classes in the second dimension. A loss of one's
    own gets the outputs as the model returns them.

    Raises:
        UserError: a loss of torch, and outputs that do not fit floating point targets.
    """
    if not is_known(loss_fn):
        return loss_fn(outputs, targets)
    found = logits(outputs)
    if targets.is_floating_point():
        if found.shape != targets.shape and found.numel() != targets.numel():
            raise UserError(
                f"outputs have shape {tuple(found.shape)} and targets {tuple(targets.shape)}; they must agree"
            )
        found = found.reshape(targets.shape)
    elif found.dim() == targets.dim() + 1 > 2 and found.shape[:-1] == targets.shape != _without(found.shape, 1):
        found = found.movedim(-1, 1)
    return loss_fn(found, targets)


def _without(shape: torch.Size, dimension: int) -> torch.Size:
    return shape[:dimension] + shape[dimension + 1 :]


def logits(outputs: Any) -> Tensor:
    """Return a model's outputs if they are one tensor, or the "logits" of a dict (as in Hugging Face models).

    Raises:
        UserError: they are anything else.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"]
    raise UserError(
        f"the model returns {type(outputs).__name__}; expected one tensor, or a dict with 'logits': wrap the model to "
        "return one"
    )


def in_dtype(outputs: Any, dtype: torch.dtype) -> Any:
    """Return a model's outputs with all floating point tensors in a dtype."""

    def cast(each: Any) -> Any:
        return each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each

    return cast(outputs) if isinstance(outputs, Tensor) else tree_map(cast, outputs)


def is_known(loss_fn: Any) -> bool:
    """Whether a loss is one of torch or a built-in one."""
    while isinstance(loss_fn, functools.partial):
        loss_fn = loss_fn.func
    module = getattr(loss_fn, "__module__", None) or ""
    return module.startswith(("torch.", "regimes.losses")) or type(loss_fn).__module__.startswith("torch.")
