"""What the measures take as data: tensors, or any loader of batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from regimes.errors import UserError

Data = tuple[Tensor, Tensor] | Iterable[Any]  # (inputs, targets), or a loader whose batches are such pairs


def pair(data: Data, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """(inputs, targets) of a pair of tensors, or of a loader's batches, which are read into memory; where a model is
    given, on its device.

    Raises:
        UserError: it is neither.
    """
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], (tuple, list)):
        inputs, targets = data
    else:
        inputs, targets = (torch.cat(each) for each in zip(*_batches(data), strict=True))
    return (inputs, targets) if model is None else (_moved(inputs, model), _moved(targets, model))


def inputs_of(data: Tensor | Iterable[Any], model: nn.Module) -> Tensor:
    """The inputs alone: a tensor, or those of a loader's batches, which may hold targets beside them."""
    if not isinstance(data, (list, tuple)) and hasattr(data, "shape"):
        return _moved(data, model)  # type: ignore[arg-type]
    batches = [each if isinstance(each, Tensor) else each[0] for each in data]
    if not batches:
        raise UserError("data: no batch in it")
    return _moved(torch.cat(batches), model)


def _batches(data: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
    batches = [tuple(each) for each in data]
    if not batches or any(len(each) != 2 or not all(isinstance(part, Tensor) for part in each) for each in batches):
        raise UserError("data: a pair (inputs, targets) of tensors, or a loader of such pairs, is expected")
    return batches


def _moved(tensor: Tensor, model: nn.Module) -> Tensor:
    device = next((each.device for each in model.parameters()), tensor.device)
    return tensor if tensor.device == device else tensor.to(device)
