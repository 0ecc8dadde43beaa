"""Trial of a network on a few inputs before it is measured: does it change them, or return random outputs?"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regimes.data.inputs import Inputs, TensorGroup, call
from regimes.device_faults import reraise_device_fault
from regimes.models.build import seeded

TRIED_INPUTS = 4
PACKAGE = __name__.partition(".")[0]


class NetworkWarning(UserWarning):
    """A network behaves such that its measured values mean less than they seem to."""


def protected(model: nn.Module, inputs: Inputs) -> Inputs:
    """Try a network on a few inputs in eval mode, and return the inputs, protected if it changes them in place.

    Protected inputs are copied for every forward pass; others cost nothing. A `NetworkWarning` says that outputs are
    random (dropout that is always on) or depend on the other inputs of a batch (BatchNorm without running statistics).
    A network that raises is returned its inputs; the measure itself reports the error.
    """
    found = warn_of(model, inputs)
    return _group(inputs).copied() if found.changes_inputs else inputs


def warn_of(model: nn.Module, inputs: Inputs) -> Trial:
    """Try a network on a few inputs, and warn if its outputs are random or depend on the rest of the batch."""
    found = try_network(model, inputs[:TRIED_INPUTS])
    name = type(model).__name__
    if found.random:
        _warn(f"{name} returns random outputs in eval mode (dropout that is always on?); so are values measured on it")
    elif not found.batch_first:
        _warn(f"{name}: the first dimension of the outputs must be the batch (batch_first=True)")
    elif found.depends_on_batch:
        _warn(
            f"{name}'s outputs depend on the other inputs of a batch (BatchNorm without running statistics, or "
            "batch_first=False?); measured values depend on the batch and chunk size"
        )
    return found


@dataclass(frozen=True)
class Trial:
    """Behaviour of a network on a few inputs in eval mode.

    Attributes:
        changes_inputs: whether it changes its inputs in place.
        random: whether its outputs differ from call to call.
        depends_on_batch: whether the outputs of an input depend on the other inputs of the batch.
        batch_first: whether the outputs (the logits of a dict) have one row per input.
    """

    changes_inputs: bool = False
    random: bool = False
    depends_on_batch: bool = False
    batch_first: bool = True


def try_network(model: nn.Module, inputs: Inputs) -> Trial:
    """Try a network on a few inputs, which are copied; one that raises counts as well-behaved."""
    few = inputs.clone()
    before = few.clone()
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with seeded(1):
                outputs = call(model, few)
                first, rows = _tensors(outputs), _rows(outputs)
            changes = not _same(_parts(few), _parts(before), exact=True)
            with seeded(2):
                second = _tensors(call(model, before.clone()))
            with seeded(1):
                alone = _tensors(call(model, before.clone()[:2]))
    except Exception as error:  # the measure itself reports what a network raises
        reraise_device_fault(error)
        return Trial()
    finally:
        for module in training:
            module.training = True
    two, together = ([each[:2] for each in found if each.dim()] for found in (alone, first))
    return Trial(
        changes, not _same(first, second), len(few) > 2 and not _same(two, together), rows in (None, len(before))
    )


def copy_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Forward pre-hook that copies the inputs of a network that changes them in place."""
    copied: tuple[Any, Any] = tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, (args, kwargs))
    return copied


def _warn(message: str) -> None:
    """Warn at the line of the user's code that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, NetworkWarning, stacklevel=level)


def _group(inputs: Inputs) -> TensorGroup:
    return inputs if isinstance(inputs, TensorGroup) else TensorGroup([inputs[:]])


def _parts(inputs: Inputs) -> list[Tensor]:
    return list(inputs.named().values()) if isinstance(inputs, TensorGroup) else [inputs]


def _tensors(outputs: Any) -> list[Tensor]:
    return [each.clone() for each in tree_leaves(outputs) if isinstance(each, Tensor)]


def _rows(outputs: Any) -> int | None:
    """Length of the first dimension of the outputs, or of the logits of a dict; None for outputs of another form."""
    main = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    return len(main) if isinstance(main, Tensor) and main.dim() else None


def _same(one: list[Tensor], other: list[Tensor], exact: bool = False) -> bool:
    rtol = 0.0 if exact else 1e-3
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=rtol * _scale(a), equal_nan=True)
        for a, b in zip(one, other, strict=True)
    )


def _scale(values: Tensor) -> float:
    finite = values[values.isfinite()] if values.dtype != torch.bool else values[:0]
    return float(finite.abs().max()) if finite.numel() else 0.0
