"""Input data of the measures: a pair of inputs and targets, or any loader of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regimes.data.inputs import Inputs, TensorGroup, concatenated, padded
from regimes.data.uint8_images import Uint8Images
from regimes.errors import UserError
from regimes.landscape.trial import protected
from regimes.losses.functions import IGNORED
from regimes.models.build import dtype_of

DATA_FORMAT_ERROR = (
    "data: expected a pair (inputs, targets), or a loader of such pairs, not empty; inputs are a tensor, or a tuple or "
    "dict of tensors, targets a tensor (in a dict: its 'labels')"
)
Data = tuple[Any, Tensor] | Iterable[Any]  # (inputs, targets), or a loader whose batches are such pairs


def pair(data: Data, model: nn.Module | None = None) -> tuple[Inputs, Tensor]:
    """Return (inputs, targets) of a pair or of a loader.

    Args:
        data: a pair, a ``Dataset`` of torch, or any iterable of batches, which is read into memory. A batch is a pair
            (inputs, targets), a longer tuple with the targets last, or a dict with the targets as "labels". Batches of
            different length are padded if their inputs have a mask of padding (see `concatenated`), their targets with
            -100.
        model: if given, the tensors are moved to its device, and the model is tried on a few inputs; see `protected`.

    Raises:
        UserError: the data have another form, are empty, or inputs and targets differ in number.
    """
    if _is_pair(data):
        inputs, targets = _inputs(data[0]), data[1]  # type: ignore[index]
    elif isinstance(data, Mapping):
        inputs, targets = _batch(data)
    else:
        batches = [_batch(each) for each in _loader(data)]
        if not batches:
            raise UserError(DATA_FORMAT_ERROR)
        inputs, targets = concatenated([each for each, _ in batches]), _joined_targets([each for _, each in batches])
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise UserError(
            f"data: needs equally many inputs and targets, at least one: got {len(inputs)} and {len(targets)}"
        )
    if model is None:
        return inputs, targets
    return protected(model, _moved(inputs, model)), _moved(targets, model)


def inputs_of(data: Any, model: nn.Module) -> Inputs:
    """Return the inputs alone, on the model's device; the model is tried on a few of them, see `protected`.

    Args:
        data: a tensor, a dict of tensors, a pair (inputs, targets), or a loader whose batches are inputs or such pairs.
        model: a network.

    Raises:
        UserError: the data have another form, or are empty.
    """
    if isinstance(data, (Tensor, TensorGroup, Uint8Images)):
        inputs: Inputs = data  # type: ignore[assignment]
    elif _is_pair(data):
        inputs = _inputs(data[0])
    elif isinstance(data, Mapping):
        inputs = _inputs({name: each for name, each in data.items() if name != "labels"})
    elif hasattr(data, "shape") or not isinstance(data, (Iterable, TorchDataset)):
        raise UserError(DATA_FORMAT_ERROR)
    else:
        batches = [_only_inputs(each) for each in _loader(data)]
        if not batches:
            raise UserError(DATA_FORMAT_ERROR)
        inputs = concatenated(batches)
    if len(inputs) == 0:
        raise UserError(DATA_FORMAT_ERROR)
    return protected(model, _moved(inputs, model))


def _is_pair(data: Any) -> bool:
    """Whether data are (inputs, targets) rather than a sequence of batches."""
    if not isinstance(data, tuple) or len(data) != 2 or not isinstance(data[1], Tensor):
        return False
    return isinstance(data[0], (Tensor, TensorGroup, Uint8Images)) or _is_tree(data[0])


def _is_tree(inputs: Any) -> bool:
    parts = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    return isinstance(parts, (tuple, list)) and len(parts) > 0 and all(isinstance(each, Tensor) for each in parts)


def _inputs(given: Any) -> Inputs:
    if isinstance(given, (Tensor, TensorGroup, Uint8Images)):
        return given  # type: ignore[return-value]
    if not _is_tree(given):
        raise UserError(DATA_FORMAT_ERROR)
    return TensorGroup(given)


def _batch(batch: Any) -> tuple[Inputs, Tensor]:
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        return _inputs({name: each for name, each in batch.items() if name != "labels"}), batch["labels"]
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[-1], Tensor):
        raise UserError(DATA_FORMAT_ERROR)
    return _inputs(batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]


def _only_inputs(batch: Any) -> Inputs:
    if isinstance(batch, Mapping):
        return _inputs({name: each for name, each in batch.items() if name != "labels"})
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        return _inputs(batch[0])
    return _batch(batch)[0]


def _loader(data: Any) -> Iterable[Any]:
    if isinstance(data, Tensor) or not isinstance(data, (Iterable, TorchDataset)):
        raise UserError(DATA_FORMAT_ERROR)
    return DataLoader(data, batch_size=256) if isinstance(data, TorchDataset) else data


def _joined_targets(parts: list[Tensor]) -> Tensor:
    longest = max(each.shape[1] if each.dim() > 1 else 0 for each in parts)
    if longest and not parts[0].is_floating_point():
        parts = [padded(each, longest, IGNORED) for each in parts]
    if len({each.shape[1:] for each in parts}) > 1:
        raise UserError("targets: batches have targets of different shapes")
    return torch.cat(parts)


def _moved(data: Any, model: nn.Module) -> Any:
    """Data on a model's device, floating point numbers in its precision."""
    device = next((each.device for each in model.parameters()), data.device)
    dtype = dtype_of(model)
    if isinstance(data, Tensor):
        return data.to(device, dtype if data.is_floating_point() else None)
    return data.to(device, dtype)
