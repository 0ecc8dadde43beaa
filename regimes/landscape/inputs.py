"""What the measures take as data: tensors, or any loader of batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regimes.errors import UserError

EXPECTED = "data: a pair (inputs, targets) of tensors, or a loader of such pairs, is expected, not empty"
Data = tuple[Tensor, Tensor] | Iterable[Any]  # (inputs, targets), or a loader whose batches are such pairs


def pair(data: Data, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """(inputs, targets) of a pair of tensors, or of a loader's batches, which are read into memory; where a model is
    given, on its device.

    Raises:
        UserError: it is neither, or inputs and targets are not equally many, above 0.
    """
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], (tuple, list)):
        inputs, targets = data
        if isinstance(inputs, np.ndarray) or not isinstance(targets, Tensor):
            raise UserError(EXPECTED)
    else:
        inputs, targets = (torch.cat(each) for each in zip(*_batches(data), strict=True))
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise UserError(f"data: as many targets as inputs, above 0: got {len(inputs)} and {len(targets)}")
    return (inputs, targets) if model is None else (_moved(inputs, model), _moved(targets, model))


def inputs_of(data: Tensor | Iterable[Any], model: nn.Module) -> Tensor:
    """The inputs alone: of a tensor, a pair (inputs, targets), or a loader whose batches may hold targets beside them.

    Raises:
        UserError: there are none.
    """
    inputs: Any = data
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], (tuple, list)):
        inputs = data[0]
    elif isinstance(data, (list, tuple, TorchDataset)) or not hasattr(data, "shape"):
        loader = DataLoader(data, batch_size=256) if isinstance(data, TorchDataset) else data
        batches = [each if isinstance(each, Tensor) else each[0] for each in loader]
        if not batches or not all(isinstance(each, Tensor) for each in batches):
            raise UserError(EXPECTED)
        inputs = torch.cat(batches)
    if isinstance(inputs, np.ndarray) or len(inputs) == 0:
        raise UserError(EXPECTED)
    return _moved(inputs, model)


def _batches(data: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
    loader = DataLoader(data, batch_size=256) if isinstance(data, TorchDataset) else data
    batches = [tuple(each) for each in loader]
    if not batches or any(len(each) != 2 or not all(isinstance(part, Tensor) for part in each) for each in batches):
        raise UserError(EXPECTED)
    return batches


def _moved(tensor: Tensor, model: nn.Module) -> Tensor:
    device = next((each.device for each in model.parameters()), tensor.device)
    return tensor if tensor.device == device else tensor.to(device)
