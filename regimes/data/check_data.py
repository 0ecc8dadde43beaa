"""Check of a data set before any work: what cannot be learnt or measured is refused, what misleads is warned of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from regimes.data.dataset import Dataset, Split, check_alike
from regimes.data.inputs import TensorGroup, values_per_input
from regimes.data.uint8_images import Uint8Images
from regimes.errors import UserError
from regimes.losses.functions import IGNORED

MOST_REPEATED = 0.01  # share of test inputs that may be training inputs, too, without a warning
OTHER_SCALE = 10  # ratio of standard deviations from which on inputs of a split are on another scale
SHOWN = 5  # numbers of classes or channels in a message


def check_data(data: Dataset) -> None:
    """Check a data set, however it was made.

    Warns of classes without training inputs, of image channels that are constant, of splits on another scale, and of
    test inputs that are training inputs, too.

    Raises:
        UserError: a split has no tensors, is empty, differs in its numbers of inputs and targets, or has inputs that
            are not finite or class numbers out of range; the splits have inputs or targets of different kinds; all
            training inputs or all training targets are the same.
    """
    where = f"data set '{data.title}'"
    splits = {"train": data.train, "val": data.val, "test": data.test}
    for name, split in splits.items():
        _check_split(f"{where}: {name}", split)
        _check_values(f"{where}: {name}", split, data.classes)
    check_alike(data.title, splits)
    for what, numbers in (("inputs", data.train.inputs), ("targets", data.train.targets)):
        if _all_the_same(numbers):
            raise UserError(f"{where}: all training {what} are the same; there is nothing to learn")
    inputs = data.train.inputs
    for problem in (
        *_missing_classes(data),
        *_constant_channels(inputs),
        *_other_scales(data),
        *_repeated_inputs(data),
    ):
        warnings.warn(f"{where}: {problem}", stacklevel=2)


def _check_split(where: str, split: Any) -> None:
    """Refuse a split whose tensors do not fit together."""
    pair = isinstance(split, tuple) and len(split) == 2 and isinstance(split[1], Tensor)
    if not pair or not isinstance(split[0], (Tensor, TensorGroup, Uint8Images)):
        raise UserError(f"{where} must be a Split of tensors; Dataset.from_arrays makes it of arrays")
    inputs, targets = split
    if any(each.layout != torch.strided or each.requires_grad for each in (*_tensors(inputs), targets)):
        raise UserError(f"{where} must have dense tensors without gradient; use .to_dense() and .detach()")
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise UserError(
            f"{where} has {len(inputs)} inputs and {len(targets)} targets; needs equally many, at least one"
        )
    if values_per_input(inputs) == 0:
        raise UserError(f"{where} has inputs without values, of shape {tuple(inputs.shape)}")


def _check_values(where: str, split: Split, classes: int) -> None:
    """Refuse inputs that are not finite, and targets that are neither finite nor numbers of classes."""
    inputs, targets = split
    lost = torch.zeros(len(inputs), dtype=torch.bool)
    for each in _tensors(inputs):
        values = torch.view_as_real(each) if each.is_complex() else each
        # Of several tensors one may be a mask of padding, which is minus infinity in places.
        bad = values.isnan() if isinstance(inputs, TensorGroup) else ~values.float().isfinite()
        lost |= bad.reshape(len(each), -1).any(dim=1).cpu()
    if bool(lost.any()):
        raise UserError(
            f"{where}: {int(lost.sum())} of {len(inputs)} inputs have values that are NaN or infinite in float32, "
            f"first number {int(lost.nonzero()[0])}; mend them or leave them out"
        )
    if targets.is_floating_point():
        if not bool(targets.isfinite().all()):
            raise UserError(f"{where} targets must be finite")
        return
    if targets.dtype != torch.int64:
        raise UserError(f"{where} targets are {targets.dtype}; use class numbers (int64) or floating point numbers")
    counted = targets[targets != IGNORED]
    if not len(counted) or int(counted.min()) < 0 or int(counted.max()) >= classes:
        raise UserError(f"{where} targets must be class numbers from 0 to {classes - 1}")


def _tensors(inputs: Any) -> list[Tensor]:
    """The tensors of inputs; none of images as bytes, which are always finite."""
    if isinstance(inputs, TensorGroup):
        return list(inputs.named().values())
    return [inputs] if isinstance(inputs, Tensor) else []


def _all_the_same(numbers: Any) -> bool:
    if isinstance(numbers, Uint8Images):
        return bool(numbers.constant.all())
    return all(bool((each == each[:1]).all()) for each in _tensors(numbers))


def _missing_classes(data: Dataset) -> Iterator[str]:
    """With several targets per input, rare ones (tokens) may well be missing."""
    if data.regression or data.train.targets.dim() > 1:
        return
    seen = data.train.targets.unique()
    missing = data.classes - len(seen)
    if missing:
        first = torch.arange(min(data.classes, len(seen) + SHOWN))
        numbers = first[~torch.isin(first, seen)].tolist()[:SHOWN]
        shown = ", ".join(map(str, numbers)) + (", ..." if missing > len(numbers) else "")
        others = {"validation": data.val.targets, "test": data.test.targets}
        unseen = [f"{int((~torch.isin(each, seen)).sum())} of {len(each)} {name}" for name, each in others.items()]
        share = " and ".join(unseen)
        yield f"{missing} of {data.classes} classes ({shown}) have no training inputs; {share} inputs are theirs"


def _constant_channels(inputs: Any) -> Iterator[str]:
    if isinstance(inputs, Uint8Images):
        constant = inputs.constant
    elif isinstance(inputs, Tensor) and inputs.dim() == 4:
        constant = inputs.amin(dim=(0, 2, 3)) == inputs.amax(dim=(0, 2, 3))
    else:
        return
    if bool(constant.any()):
        numbers = ", ".join(map(str, constant.nonzero()[:SHOWN, 0].tolist()))
        yield f"{int(constant.sum())} of {len(constant)} channels of the training images are constant ({numbers})"


def _other_scales(data: Dataset) -> Iterator[str]:
    if isinstance(data.train.inputs, Tensor) and data.train.inputs.is_floating_point():
        usual = float(data.train.inputs.float().std())
        for name, split in (("validation", data.val), ("test", data.test)):
            found = float(split.inputs.float().std())
            if len(split.inputs) > 1 and not usual / OTHER_SCALE < found < usual * OTHER_SCALE:
                yield (
                    f"{name} inputs have a standard deviation of {found:.3g}, training inputs of {usual:.3g}; are they "
                    "scaled alike?"
                )


def _repeated_inputs(data: Dataset) -> Iterator[str]:
    """Tokens and the like repeat themselves: they are not compared."""
    inputs, count = data.train.inputs, len(data.test.targets)
    if isinstance(inputs, Uint8Images) or (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        known = set(_row_hashes(inputs))
        repeated = sum(each in known for each in _row_hashes(data.test.inputs))
        if repeated > MOST_REPEATED * count:
            yield f"{repeated} of {count} test inputs are training inputs, too; the test error is too low"


def _row_hashes(inputs: Any) -> Iterator[int]:
    pieces = inputs.pieces() if isinstance(inputs, Uint8Images) else [inputs.cpu().contiguous().numpy()]
    return (hash(row.tobytes()) for piece in pieces for row in piece)
