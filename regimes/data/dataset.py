"""Data sets as tensors: training, validation and test split on one device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regimes.data.uint8_images import Uint8Images
from regimes.errors import UserError


class Split(NamedTuple):
    """Inputs (n, ...) and targets (n,) of one split.

    Attributes:
        inputs: a tensor, or `Uint8Images`, which become a float tensor when indexed or split.
        targets: class numbers (n,), or floating point numbers (n, k) for regression.
    """

    inputs: Tensor
    targets: Tensor

    def to(
        self, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.preserve_format
    ) -> Split:
        """Return the split on a device, with its inputs in a floating dtype, and images in a memory format."""
        targets = self.targets.to(device, dtype if self.targets.is_floating_point() else self.targets.dtype)
        held: Any = self.inputs
        if isinstance(held, Uint8Images):
            return Split(held.to(device, dtype, layout), targets)  # type: ignore[arg-type]
        inputs = self.inputs.to(device, dtype)
        return Split(inputs.to(memory_format=layout) if inputs.dim() == 4 else inputs, targets)


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test split of a data set.

    Attributes:
        train: the training split, without augmentation.
        val: the validation split, for model selection.
        test: the test split, for the final evaluation only.
        classes: number of classes; for regression, number of targets per input (k).
        title: name for captions, e.g. "handwritten digits (scikit-learn)".
    """

    train: Split
    val: Split
    test: Split
    classes: int
    title: str

    @classmethod
    def from_arrays(
        cls, train: Any, test: Any, val: Any = None, *, title: str, val_fraction: float = 0.1, split_seed: int = 0
    ) -> Dataset:
        """Build a data set from ``(inputs, targets)`` pairs of arrays or tensors.

        Inputs are floating point numbers (n, ...). Targets are class numbers 0, 1, 2, ... (n,), or for regression
        floating point numbers (n,) or (n, k).

        Args:
            train, test: the training and test pair.
            val: the validation pair; None: a part of the training pair is held out.
            title: name for captions.
            val_fraction: fraction of each class held out if ``val`` is None.
            split_seed: seed of that draw. The split is the same on every machine and for every seed of a sweep.

        Raises:
            UserError: a pair has inputs and targets of different length, targets or inputs of another kind, or the
                splits have targets of different kinds.
        """
        pairs = {"train": _pair(train, "train", title), "test": _pair(test, "test", title)}
        if val is None:
            pairs["train"], pairs["val"] = hold_out(pairs["train"], val_fraction, split_seed)
        else:
            pairs["val"] = _pair(val, "val", title)
        numbers = {split.targets.shape[1:] for split in pairs.values()}
        if len(numbers) > 1 or len({split.targets.dtype for split in pairs.values()}) > 1:
            raise UserError(f"data set '{title}': its splits have targets of different kinds")
        (width,) = numbers
        classes = width[0] if width else 1 + max(int(split.targets.max()) for split in pairs.values())
        return cls(pairs["train"], pairs["val"], pairs["test"], classes, title)

    @property
    def regression(self) -> bool:
        """Whether the targets are numbers rather than classes."""
        return self.train.targets.is_floating_point()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def guess(self) -> float | None:
        """Validation error of always predicting the largest class; None for regression."""
        targets = self.val.targets
        return None if self.regression else 1 - float(targets.bincount().max()) / len(targets)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all values in the splits and of the number of classes; part of every cell's key."""
        digest = hashlib.sha256(str(self.classes).encode())
        for split in (self.train, self.val, self.test):
            for numbers in split:
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


def _pieces(numbers: Any) -> Iterator[np.ndarray]:
    """The values of a tensor; for images, the bytes and the statistics they are standardised with."""
    if isinstance(numbers, Uint8Images):
        yield from (each.cpu().numpy() for each in (numbers.mean, numbers.deviation))
        yield from numbers.pieces()
    else:
        yield numbers.detach().cpu().contiguous().numpy()


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a random ``fraction`` of every class; return (kept, held out)."""
    labels = split.targets if split.targets.dim() == 1 else torch.zeros(len(split.targets))  # numbers: one class
    chosen = torch.from_numpy(held_out_mask(labels.numpy(), fraction, seed))
    return Split(split.inputs[~chosen], split.targets[~chosen]), Split(split.inputs[chosen], split.targets[chosen])


def held_out_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a boolean array (n,) that marks a random ``fraction`` of every class, the same on every machine.

    Raises:
        UserError: a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction = {fraction}: allowed: above 0 and below 1")
    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held.append(members[: max(1, round(fraction * len(members)))])
    out = np.zeros(len(labels), dtype=bool)
    out[np.concatenate(held)] = True
    return out


def _pair(pair: Any, name: str, title: str) -> Split:
    try:
        inputs, targets = pair
    except (TypeError, ValueError) as error:
        raise UserError(f"data set '{title}': {name} must be a pair (inputs, targets)") from error
    inputs = torch.as_tensor(inputs)
    targets = torch.as_tensor(targets)
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise UserError(
            f"data set '{title}': {name} has {len(inputs)} inputs and {len(targets)} targets; "
            "needs equally many, at least one"
        )
    if targets.is_floating_point():
        if targets.ndim not in (1, 2) or not bool(targets.isfinite().all()):
            raise UserError(f"data set '{title}': {name} targets must be one finite number per input, or a row of them")
        targets = targets.reshape(len(targets), -1).float()
    elif targets.ndim != 1 or int(targets.min()) < 0:
        raise UserError(f"data set '{title}': {name} targets must be one class number (0, 1, 2, ...) per input")
    else:
        targets = targets.to(torch.int64)
    if not inputs.is_floating_point():
        raise UserError(f"data set '{title}': {name} inputs must be floating point numbers, got {inputs.dtype}")
    return Split(inputs.contiguous(), targets.contiguous())
