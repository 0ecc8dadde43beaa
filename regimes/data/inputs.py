"""Inputs of a model: one tensor, or several that the model takes together, by position or by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regimes.errors import UserError

TOKEN_VALUES = 64  # input values that an integer counts as: it becomes an embedding


class TensorGroup:
    """Tensors of equal length that a model takes together: ``model(*tensors)`` or ``model(**tensors)``.

    Indexing, `split` and `to` act on every tensor, so a group behaves like one tensor of inputs. ``group["name"]`` (or
    ``group.tensors``) gives a single one.

    Args:
        tensors: {argument: tensor}, or a sequence of positional arguments; each of shape (n, ...).
        fragile: whether the model changes its inputs in place, so that it gets a copy in every forward pass.

    Raises:
        UserError: no tensors, or tensors of different length.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | Sequence[Tensor], fragile: bool = False) -> None:
        self.fragile = fragile
        self.tensors: dict[str, Tensor] | tuple[Tensor, ...] = (
            dict(tensors) if isinstance(tensors, Mapping) else tuple(tensors)
        )
        lengths = {name: len(each) if each.dim() else 0 for name, each in self.named().items()}
        if not lengths or len(set(lengths.values())) > 1:
            found = ", ".join(f"{name}: {length}" for name, length in lengths.items()) or "none"
            raise UserError(f"inputs: several tensors need the same first length, got {found}")

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by name; positional ones are named "0", "1", ..."""
        if isinstance(self.tensors, dict):
            return self.tensors
        return {str(position): each for position, each in enumerate(self.tensors)}

    def map(self, function: Callable[[Tensor], Tensor]) -> TensorGroup:
        """Return the group of ``function(tensor)`` of every tensor."""
        if isinstance(self.tensors, dict):
            return TensorGroup({name: function(each) for name, each in self.tensors.items()}, self.fragile)
        return TensorGroup([function(each) for each in self.tensors], self.fragile)

    def copied(self) -> TensorGroup:
        """Return the same tensors as inputs that the model gets as a copy in every forward pass."""
        return TensorGroup(self.tensors, fragile=True)

    def __len__(self) -> int:
        return len(next(iter(self.named().values())))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self.named()[index]
        return self.map(lambda each: each[index])

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("a TensorGroup is indexed by rows or names; iterate over its `tensors`")

    def split(self, size: int) -> Iterator[TensorGroup]:
        """Yield consecutive batches of ``size`` inputs."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> TensorGroup:
        """Return the group on a device, its floating point tensors in a dtype."""
        return self.map(lambda each: each.to(device, dtype if each.is_floating_point() else None))

    def index_select(self, dim: int, index: Tensor) -> TensorGroup:
        """Return the rows ``index`` of every tensor; ``dim`` is 0, as for tensors."""
        return self.map(lambda each: each.index_select(dim, index))

    def clone(self) -> TensorGroup:
        """Return a copy."""
        return self.map(torch.clone)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(iter(self.named().values())).device

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(each.nbytes for each in self.named().values())


Inputs = Tensor | TensorGroup


def arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the positional and keyword arguments with which a model takes ``inputs``."""
    if not isinstance(inputs, TensorGroup):
        return (inputs,), {}
    given = inputs.clone().tensors if inputs.fragile else inputs.tensors
    return ((), given) if isinstance(given, dict) else (given, {})


def call(model: nn.Module | Callable[..., Any], inputs: Inputs) -> Any:
    """Return ``model(inputs)``, ``model(*inputs)`` or ``model(**inputs)``."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def input_shape(inputs: Inputs) -> Any:
    """Return the shape of one input; of a group, {argument: shape} or a tuple of shapes."""
    if not isinstance(inputs, TensorGroup):
        return tuple(inputs.shape[1:])
    shapes = {name: tuple(each.shape[1:]) for name, each in inputs.named().items()}
    return shapes if isinstance(inputs.tensors, dict) else tuple(shapes.values())


def values_per_input(inputs: Inputs) -> int:
    """Return the number of values of one input, each integer counted as `TOKEN_VALUES`."""
    if isinstance(inputs, TensorGroup):
        return sum(values_per_input(each) for each in inputs.named().values())
    first = inputs[:1]
    return int(first.numel()) * (1 if first.is_floating_point() or first.is_complex() else TOKEN_VALUES)


def concatenated(batches: Sequence[Inputs]) -> Inputs:
    """Return batches of inputs as one.

    Shorter sequences of named inputs with a mask of padding are padded at the end: ``attention_mask`` (and all other
    tensors) with 0, a ``*padding_mask`` with True, or with minus infinity if it is a floating point number.

    Raises:
        UserError: the batches differ in form, or in shape without such a mask.
    """
    first = batches[0]
    if not isinstance(first, TensorGroup):
        return _joined([each for each in batches if isinstance(each, Tensor)], "inputs")
    names = first.named()
    if any(not isinstance(each, TensorGroup) or each.named().keys() != names.keys() for each in batches):
        raise UserError(f"inputs: every batch needs the same tensors, here {', '.join(names)}")
    masked = any(name == "attention_mask" or name.endswith("padding_mask") for name in names)
    whole = {}
    for name in names:
        parts: list[Tensor] = [each.named()[name] for each in batches if isinstance(each, TensorGroup)]
        longest = max(part.shape[1] for part in parts) if masked and parts[0].dim() > 1 else 0
        fill: float = name.endswith("padding_mask")
        if fill and parts[0].is_floating_point():
            fill = -math.inf  # added to attention scores
        parts = [padded(part, longest, fill) if longest else part for part in parts]
        whole[name] = _joined(parts, name)
    return TensorGroup(whole if isinstance(first.tensors, dict) else list(whole.values()))


def padded(tensor: Tensor, length: int, value: float) -> Tensor:
    """Return a tensor (n, t, ...) with its second dimension padded at the end to ``length``."""
    missing = length - tensor.shape[1]
    if not missing:
        return tensor
    return torch.cat([tensor, tensor.new_full((len(tensor), missing, *tensor.shape[2:]), value)], dim=1)


def _joined(parts: Sequence[Tensor], name: str) -> Tensor:
    shapes = sorted({tuple(each.shape[1:]) for each in parts})
    if len(shapes) > 1:
        raise UserError(
            f"{name}: batches have rows of shape {shapes[0]} and {shapes[-1]}; pad them to one length, or pass a dict "
            "with an attention_mask, whose batches are padded here"
        )
    return torch.cat(list(parts))
