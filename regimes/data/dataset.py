"""Data sets as tensors: training, validation and test split on one device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regimes.data.inputs import TensorGroup, input_shape
from regimes.data.uint8_images import Uint8Images
from regimes.errors import UserError
from regimes.losses.functions import IGNORED


class Split(NamedTuple):
    """Inputs (n, ...) and targets (n, ...) of one split.

    Attributes:
        inputs: a tensor, a `TensorGroup` of several, or `Uint8Images`, which become a float tensor when indexed or
            split. Integers (tokens) keep their dtype.
        targets: class numbers (n,); for several per input, as one per token or pixel, (n, ...), -100 where there is
            none; or floating point numbers (n, ...) for regression, one logit (0 or 1) or several labels.
    """

    inputs: Any
    targets: Tensor

    def to(
        self, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.preserve_format
    ) -> Split:
        """Return the split on a device, floating point numbers in a dtype, and images in a memory format."""
        targets = self.targets.to(device, dtype if self.targets.is_floating_point() else None)
        held = self.inputs
        if isinstance(held, Uint8Images):
            return Split(held.to(device, dtype, layout), targets)
        if isinstance(held, TensorGroup):
            return Split(held.to(device, dtype), targets)
        inputs = held.to(device, dtype if held.is_floating_point() else None)
        return Split(inputs.to(memory_format=layout) if inputs.dim() == 4 else inputs, targets)

    def first(self, count: int) -> Split:
        """Return the first ``count`` inputs and targets; images stay bytes."""
        held = self.inputs.first(count) if isinstance(self.inputs, Uint8Images) else self.inputs[:count]
        return Split(held, self.targets[:count])


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test split of a data set.

    Attributes:
        train: the training split, without augmentation.
        val: the validation split, for model selection.
        test: the test split, for the final evaluation only.
        classes: number of classes; of floating point targets, their number per input.
        title: name for captions, e.g. "handwritten digits (scikit-learn)".
    """

    train: Split
    val: Split
    test: Split
    classes: int
    title: str

    @classmethod
    def from_arrays(
        cls,
        train: Any,
        test: Any,
        val: Any = None,
        *,
        title: str,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        ignore_index: int = IGNORED,
    ) -> Dataset:
        """Build a data set from ``(inputs, targets)`` pairs of arrays or tensors.

        Inputs are numbers (n, ...), integers (tokens) included; a tuple of several arrays is passed to the model as
        ``model(*arrays)`` and a dict as ``model(**arrays)``. Targets are class numbers 0, 1, 2, ... (n,), or one per
        token or pixel (n, ...); or floating point numbers (n,) or (n, ...), for regression and, with the loss
        "binary-cross-entropy", for one logit (0 or 1) or several labels per input.

        Args:
            train, test: the training and test pair.
            val: the validation pair; None: a part of the training pair is held out.
            title: name for captions.
            val_fraction: fraction of each class held out if ``val`` is None.
            split_seed: seed of that draw. The split is the same on every machine and for every seed of a sweep.
            ignore_index: class number that means "no target here" (padding); stored as -100, as torch's losses expect.

        Raises:
            UserError: a pair has inputs and targets of different length, targets or inputs of another kind, or the
                splits have targets of different kinds.
        """
        pairs = {
            "train": _pair(train, "train", title, ignore_index),
            "test": _pair(test, "test", title, ignore_index),
        }
        if val is None:
            pairs["train"], pairs["val"] = hold_out(pairs["train"], val_fraction, split_seed)
        else:
            pairs["val"] = _pair(val, "val", title, ignore_index)
        check_alike(title, pairs)
        targets = pairs["train"].targets
        numbers = targets.is_floating_point()
        classes = targets[0].numel() if numbers else 1 + max(int(split.targets.max()) for split in pairs.values())
        return cls(pairs["train"], pairs["val"], pairs["test"], classes, title)

    @property
    def regression(self) -> bool:
        """Whether the targets are floating point numbers rather than classes."""
        return self.train.targets.is_floating_point()

    @property
    def input_shape(self) -> Any:
        """Shape of one input; of several tensors, {argument: shape} or a tuple of shapes."""
        return input_shape(self.train.inputs)

    @property
    def guess(self) -> float | None:
        """Validation error of always predicting the same; see `guessing_error`."""
        return guessing_error(self.val.targets)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all values in the splits and of the number of classes; part of every cell's key."""
        digest = hashlib.sha256(str(self.classes).encode())
        for split in (self.train, self.val, self.test):
            if isinstance(split.inputs, TensorGroup):
                digest.update(str(list(split.inputs.named())).encode())
            for numbers in (*_arrays(split.inputs), split.targets):
                digest.update(f"{numbers.dtype}{tuple(numbers.shape)}".encode())
                for piece in _pieces(numbers):
                    digest.update(piece.data)
        return digest.hexdigest()[:20]

    def to(
        self, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.preserve_format
    ) -> Dataset:
        """Return the data set on a device. Compute `fingerprint` before: it hashes the data as loaded."""
        train, val, test = (split.to(device, dtype, layout) for split in (self.train, self.val, self.test))
        return Dataset(train, val, test, self.classes, self.title)


def check_alike(title: str, splits: Mapping[str, Split]) -> None:
    """Refuse splits whose inputs or targets are of different kinds or shapes.

    Raises:
        UserError: they are.
    """
    for what in ("targets", "inputs"):
        held = {name: getattr(split, what) for name, split in splits.items()}
        kinds = {name: f"{_kind(each)} of shape {input_shape(each)}" for name, each in held.items()}
        if len(set(kinds.values())) > 1:
            found = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
            raise UserError(f"data set '{title}': its splits have {what} of different kinds or shapes: {found}")


def _kind(numbers: Any) -> str:
    if isinstance(numbers, TensorGroup):
        return ", ".join(f"'{name}' {_kind(each)}" for name, each in numbers.named().items())
    if isinstance(numbers, Tensor):
        return "floats" if numbers.is_floating_point() else str(numbers.dtype).removeprefix("torch.")
    return "images"


def subset(split: Split, images: int) -> Split:
    """Return a fixed random subset of a split, the same for every network of a run.

    The subset is random because stored data are often sorted by class.

    Args:
        split: the split.
        images: size of the subset; 0: all.
    """
    count = len(split.targets)
    if images == 0 or images >= count:
        return split
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:images].sort().values
    order = order.to(split.targets.device)
    return Split(split.inputs[order], split.targets[order])


def guessing_error(targets: Tensor) -> float | None:
    """Return the error of always predicting the most common class, or for targets 0 and 1 the more common value of each
    label; None for other numbers."""
    if targets.is_floating_point():
        if not bool(((targets == 0) | (targets == 1)).all()):
            return None
        ones = targets.reshape(len(targets), -1).double().mean(dim=0)
        return float(torch.minimum(ones, 1 - ones).mean())
    counted = targets[targets != IGNORED]
    return 1 - float(counted.bincount().max()) / len(counted)


def predictions_per_input(targets: Tensor) -> int:
    """Return the number of predictions per input: more than one for a class per token or pixel."""
    return 1 if targets.is_floating_point() else targets[0].numel()


def _arrays(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, TensorGroup):
        yield from inputs.named().values()
    else:
        yield inputs


def _pieces(numbers: Any) -> Iterator[np.ndarray]:
    """The values of a tensor; for images, the bytes and the statistics they are standardised with."""
    if isinstance(numbers, Uint8Images):
        yield from (each.cpu().numpy() for each in (numbers.mean, numbers.deviation))
        yield from numbers.pieces()
    else:
        yield numbers.detach().cpu().contiguous().numpy()


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a random ``fraction`` of every class; return (kept, held out)."""
    single = split.targets.dim() == 1 and not split.targets.is_floating_point()
    labels = split.targets if single else torch.zeros(len(split.targets))  # not one class each: a plain draw
    chosen = torch.from_numpy(held_out_mask(labels.numpy(), fraction, seed))
    return Split(split.inputs[~chosen], split.targets[~chosen]), Split(split.inputs[chosen], split.targets[chosen])


def held_out_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a boolean array (n,) that marks a random ``fraction`` of every class, the same on every machine.

    At least one of a class is marked, and at least one is not: the only one of a class is not.

    Raises:
        UserError: a fraction outside (0, 1), or no class with two inputs.
    """
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction = {fraction}: allowed: above 0 and below 1")
    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    out = np.zeros(len(labels), dtype=bool)
    out[np.concatenate(held)] = True
    if not out.any():
        raise UserError("no class has a second training input to be held out; give a validation split, val=(x, y)")
    return out


def _pair(pair: Any, name: str, title: str, ignore_index: int) -> Split:
    try:
        inputs, targets = pair
    except (TypeError, ValueError) as error:
        raise UserError(f"data set '{title}': {name} must be a pair (inputs, targets)") from error
    inputs = _as_inputs(inputs, f"data set '{title}': {name}")
    try:
        targets = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(np.asarray(targets, dtype=object).flat[0]).__name__
        raise UserError(
            f"data set '{title}': {name} targets must be class numbers or floating point numbers, got {kind}"
        ) from error
    if not targets.dim():
        raise UserError(f"data set '{title}': {name} targets must be an array, one row per input")
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise UserError(
            f"data set '{title}': {name} has {len(inputs)} inputs and {len(targets)} targets; "
            "needs equally many, at least one"
        )
    if targets.is_floating_point():
        if not bool(targets.isfinite().all()):
            raise UserError(f"data set '{title}': {name} targets must be finite")
        targets = (targets.reshape(len(targets), 1) if targets.ndim == 1 else targets).float()
    elif targets.is_complex():
        raise UserError(f"data set '{title}': {name} targets must be class numbers or floating point numbers")
    else:
        targets = targets.to(torch.int64)
        targets = targets.masked_fill(targets == ignore_index, IGNORED)
        if not bool((targets != IGNORED).any()) or int(targets[targets != IGNORED].min()) < 0:
            several = f", or ignore_index = {ignore_index}" if targets.ndim > 1 else ""
            raise UserError(f"data set '{title}': {name} targets must be class numbers (0, 1, 2, ...){several}")
        if targets.ndim == 1 and bool((targets == IGNORED).any()):
            raise UserError(f"data set '{title}': {name} has inputs without a target; leave them out")
    return Split(inputs, targets.contiguous())


def _as_inputs(given: Any, where: str) -> Any:
    if isinstance(given, (tuple, Mapping)):
        parts = given.values() if isinstance(given, Mapping) else given
        if any(isinstance(each, (tuple, Mapping)) for each in parts):
            raise UserError(f"{where} inputs are nested; give one tuple or dict of arrays")
        if not isinstance(given, Mapping):
            return TensorGroup([_as_inputs(each, where) for each in given])
        return TensorGroup({str(key): _as_inputs(each, f"{where} '{key}'") for key, each in given.items()})
    try:
        inputs = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{where} inputs must be an array of numbers, or a tuple or dict of such arrays: {error}"
        ) from error
    if inputs.layout != torch.strided:
        raise UserError(f"{where} inputs must be dense; use .to_dense()")
    return inputs.detach().contiguous()
