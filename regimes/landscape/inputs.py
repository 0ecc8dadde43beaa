"""Input data of the measures: tensors, or any loader of batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regimes.errors import UserError

DATA_FORMAT_ERROR = "data: expected a pair (inputs, targets) of tensors, or a loader of such pairs, not empty"
Data = tuple[Tensor, Tensor] | Iterable[Any]  # (inputs, targets), or a loader whose batches are such pairs


def pair(data: Data, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets) of a pair of tensors or of a loader.

    Args:
        data: a pair of tensors, a ``Dataset`` of torch, or any iterable of such pairs, which is read into memory.
        model: if given, the tensors are moved to its device.

    Raises:
        UserError: the data have another form, are empty, or inputs and targets differ in number.
    """
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], (tuple, list)):
        inputs, targets = data
        if isinstance(inputs, np.ndarray) or not isinstance(targets, Tensor):
            raise UserError(DATA_FORMAT_ERROR)
    else:
        inputs, targets = (torch.cat(each) for each in zip(*_batches(data), strict=True))
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise UserError(
            f"data: needs equally many inputs and targets, at least one: got {len(inputs)} and {len(targets)}"
        )
    return (inputs, targets) if model is None else (_moved(inputs, model), _moved(targets, model))


def inputs_of(data: Tensor | Iterable[Any], model: nn.Module) -> Tensor:
    """Return the inputs alone, on the model's device.

    Args:
        data: a tensor, a pair (inputs, targets), or a loader whose batches are inputs or such pairs.
        model: a network.

    Raises:
        UserError: the data have another form, or are empty.
    """
    inputs: Any = data
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], (tuple, list)):
        inputs = data[0]
    elif isinstance(data, (list, tuple, TorchDataset)) or not hasattr(data, "shape"):
        loader = DataLoader(data, batch_size=256) if isinstance(data, TorchDataset) else data
        batches = [each if isinstance(each, Tensor) else each[0] for each in loader]
        if not batches or not all(isinstance(each, Tensor) for each in batches):
            raise UserError(DATA_FORMAT_ERROR)
        inputs = torch.cat(batches)
    if isinstance(inputs, np.ndarray) or len(inputs) == 0:
        raise UserError(DATA_FORMAT_ERROR)
    return _moved(inputs, model)


def _batches(data: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
    loader = DataLoader(data, batch_size=256) if isinstance(data, TorchDataset) else data
    batches = [tuple(each) for each in loader]
    if not batches or any(len(each) != 2 or not all(isinstance(part, Tensor) for part in each) for each in batches):
        raise UserError(DATA_FORMAT_ERROR)
    return batches


def _moved(tensor: Tensor, model: nn.Module) -> Tensor:
    device = next((each.device for each in model.parameters()), tensor.device)
    return tensor if tensor.device == device else tensor.to(device)
