"""A data set held as tensors: train, validation and test splits on one device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regimes.errors import UserError


class Split(NamedTuple):
    """Inputs (n, ...) and targets (n,) of one split."""

    inputs: Tensor
    targets: Tensor

    def to(
        self, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.preserve_format
    ) -> Split:
        """The split on a device, its inputs in a floating dtype; images in a memory format."""
        inputs = self.inputs.to(device, dtype)
        return Split(inputs.to(memory_format=layout) if inputs.dim() == 4 else inputs, self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """Three splits of one data set. What is chosen is chosen on ``val``, what is judged is judged on ``test``.

    Attributes:
        train: inputs and integer targets the networks are trained on, not augmented.
        val: held out from training, for choices.
        test: held out from everything but the final judgement.
        classes: number of classes.
        title: for captions, e.g. "handwritten digits (scikit-learn)".
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
        """Build from ``(inputs, targets)`` pairs of arrays or tensors.

        When ``val`` is missing, ``val_fraction`` of the training pairs is held out, drawn class by class with
        ``split_seed``, so that the split is the same on every machine and for every seed of a sweep.

        Raises:
            UserError: a pair has inputs and targets of different length, or targets that are not 0, 1, 2, ...
        """
        pairs = {"train": _pair(train, "train", title), "test": _pair(test, "test", title)}
        if val is None:
            pairs["train"], pairs["val"] = hold_out(pairs["train"], val_fraction, split_seed)
        else:
            pairs["val"] = _pair(val, "val", title)
        classes = 1 + max(int(split.targets.max()) for split in pairs.values())
        return cls(pairs["train"], pairs["val"], pairs["test"], classes, title)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every number in the splits and of the number of classes: the data's part of each cell's key."""
        digest = hashlib.sha256(str(self.classes).encode())
        for split in (self.train, self.val, self.test):
            for tensor in split:
                array = tensor.detach().cpu().contiguous()
                digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
                digest.update(array.numpy().tobytes())
        return digest.hexdigest()[:20]

    def to(
        self, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.preserve_format
    ) -> Dataset:
        """The same data on a device. Take the fingerprint before: it hashes what was loaded."""
        train, val, test = (split.to(device, dtype, layout) for split in (self.train, self.val, self.test))
        return Dataset(train, val, test, self.classes, self.title)


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off ``fraction`` of every class, at random with ``seed``; returns (kept, held out)."""
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction = {fraction}: allowed: above 0 and below 1")
    random = np.random.default_rng(seed)
    targets = split.targets.numpy()
    held = []
    for label in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == label))
        held.append(members[: max(1, round(fraction * len(members)))])
    out = np.zeros(len(targets), dtype=bool)
    out[np.concatenate(held)] = True
    chosen = torch.from_numpy(out)
    return Split(split.inputs[~chosen], split.targets[~chosen]), Split(split.inputs[chosen], split.targets[chosen])


def _pair(pair: Any, name: str, title: str) -> Split:
    try:
        inputs, targets = pair
    except (TypeError, ValueError) as error:
        raise UserError(f"data set '{title}': {name} must be a pair (inputs, targets)") from error
    inputs = torch.as_tensor(inputs)
    targets = torch.as_tensor(targets)
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise UserError(
            f"data set '{title}': {name} has {len(inputs)} inputs and {len(targets)} targets; equal, above 0"
        )
    if targets.ndim != 1 or targets.is_floating_point() or int(targets.min()) < 0:
        raise UserError(f"data set '{title}': {name} targets must be one class number (0, 1, 2, ...) per input")
    if not inputs.is_floating_point():
        raise UserError(f"data set '{title}': {name} inputs must be floating point numbers, got {inputs.dtype}")
    return Split(inputs.contiguous(), targets.to(torch.int64).contiguous())
