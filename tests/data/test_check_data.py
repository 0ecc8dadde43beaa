"""Data that cannot be learnt are refused, and data that mislead are warned of, in one line before any work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regimes.data import DATASETS
from regimes.data.check_data import check_data
from regimes.data.dataset import Dataset, Split
from regimes.data.images import from_bytes
from regimes.data.inputs import TensorGroup
from regimes.errors import UserError
from regimes.registry import lookup

Made = Callable[[], Dataset]


def split(count: int = 60, seed: int = 0, shape: tuple[int, ...] = (8,)) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 3


def given(train: Any = None, val: Any = None, test: Any = None, classes: int = 3) -> Dataset:
    """A data set whose splits are as given, without the checks of `Dataset.from_arrays`."""
    parts = (train or split(), val or split(20, 1), test or split(30, 2))
    return Dataset(*(Split(*each) for each in parts), classes, "own")


def changed(pair: tuple[Tensor, Tensor], row: Any, value: float) -> tuple[Tensor, Tensor]:
    pair[0][row] = value
    return pair


def inputs(change: Callable[[Tensor], Any], pair: tuple[Tensor, Tensor]) -> tuple[Any, Tensor]:
    return change(pair[0]), pair[1]


def targets(change: Callable[[Tensor], Any], pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
    return pair[0], change(pair[1])


REFUSED: dict[str, Made] = {
    "train: 1 of 60 inputs have values that are NaN or infinite .*, first number 7": lambda: given(
        changed(split(), (7, 3), np.nan)
    ),
    "val: 2 of 20 inputs have values that are NaN": lambda: given(val=changed(split(20), slice(3, 5), np.inf)),
    "test: 30 of 30 inputs have values that are NaN or infinite in float32": lambda: given(
        test=inputs(lambda x: x.double() * 1e200, split(30))
    ),
    "train: .* of 60 inputs have values that are NaN": lambda: padded(np.nan),
    "test has 0 inputs and 0 targets": lambda: given(test=split(0)),
    "train has 60 inputs and 50 targets": lambda: given((split()[0], split(50)[1])),
    "val must be a Split of tensors": lambda: given(val=inputs(Tensor.numpy, split(20))),
    "train must have dense tensors": lambda: given(inputs(Tensor.to_sparse, split())),
    "train must have .* without gradient": lambda: given(inputs(Tensor.requires_grad_, split())),
    r"train has inputs without values, of shape \(60, 0\)": lambda: given(inputs(lambda x: x[:, :0], split())),
    "train targets are torch.int32": lambda: given(targets(Tensor.int, split())),
    "test targets must be class numbers from 0 to 1": lambda: given(
        targets(lambda y: y % 2, split()), targets(lambda y: y % 2, split(20)), classes=2
    ),
    "train targets must be class numbers from 0 to 2": lambda: given(targets(lambda y: y - 1, split())),
    r"inputs of different kinds or shapes: train floats of shape \(8,\), .*, test floats of shape \(5,\)": lambda: (
        given(test=split(30, 2, (5,)))
    ),
    "inputs of different kinds or shapes: .*, val uint8 of": lambda: given(val=inputs(Tensor.byte, split(20))),
    "targets of different kinds or shapes": lambda: given(test=targets(lambda y: y.float(), split(30))),
    "all training inputs are the same": lambda: given(changed(split(), slice(None), 1.0)),
    "all training targets are the same": lambda: given(targets(torch.zeros_like, split())),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_learnt_or_measured_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=f"^data set 'own': .*{line}") as raised:
        check_data(REFUSED[line]())
    assert len(raised.value.lines) == 1


def images(constant: int = 0, same: int = 0) -> Dataset:
    random = np.random.default_rng(3)
    train, test = (random.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8) for count in (60, 30))
    train[:, :constant], test[:same] = 9, train[:same]
    return from_bytes((train, np.arange(60) % 3), (test, np.arange(30) % 3), (test, np.arange(30) % 3), 3, "own")


WARNED: dict[str, Made] = {
    r"1 of 3 classes \(1\) have no training inputs; 7 of 20 validation and 10 of 30 test inputs are theirs": lambda: (
        given(targets(lambda y: y - y % 2, split()))
    ),
    r"997 of 1000 classes \(3, 4, 5, 6, 7, ...\) have no training inputs; 0 of 20 .* 0 of 30": lambda: given(
        classes=1000
    ),
    r"1 of 3 channels of the training images are constant \(1\)": lambda: given(
        changed(split(60, 0, (3, 4, 4)), (slice(None), 1), 0.5), split(20, 1, (3, 4, 4)), split(30, 2, (3, 4, 4))
    ),
    r"2 of 3 channels of the training images are constant \(0, 1\)": lambda: images(constant=2),
    "12 of 30 test inputs are training inputs, too": lambda: given(
        test=(torch.cat([split()[0][:12], split(18, 2)[0]]), split(30)[1])
    ),
    "11 of 30 test inputs are training inputs, too": lambda: images(same=11),
    "test inputs have a standard deviation of 2.*, training inputs of [01].*; are they scaled alike": lambda: given(
        test=inputs(lambda x: 255 * x, split(30, 2))
    ),
}


@pytest.mark.parametrize("line", WARNED)
def test_what_misleads_is_warned_of_once(line: str) -> None:
    with pytest.warns(UserWarning, match=f"^data set 'own': {line}") as warned:
        check_data(WARNED[line]())
    assert len(warned) == 1


def padded(value: float) -> Dataset:
    """Two inputs, one of them a mask of padding."""
    pairs = [
        ({"x": x, "mask": torch.zeros_like(x).masked_fill(x > 1, value)}, y)
        for x, y in (split(), split(20, 1), split(30, 2))
    ]
    return given(*((TensorGroup(x), y) for x, y in pairs))


QUIET: dict[str, Made] = {
    "noise": given,
    "images": images,
    "mask of padding": lambda: padded(-np.inf),
    "regression": lambda: given(*(targets(lambda y: y.float()[:, None], split(n, n)) for n in (60, 20, 30))),
    **{name: lookup(DATASETS, name, "data set") for name in ("digits", "mnist1d", "stdlib-text", "synthetic")},
}


@pytest.mark.parametrize("name", QUIET)
def test_ordinary_data_are_taken_without_a_word(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_data(QUIET[name]())


def test_a_constant_channel_is_zero_and_is_not_magnified() -> None:
    data = images(constant=1)
    assert float(data.train.inputs[:][:, 0].abs().max()) < 1e-6
    assert float(data.test.inputs[:][:, 0].abs().max()) < 1


def test_a_class_with_one_input_is_not_held_out() -> None:
    x, y = split(41)
    y[:40], y[40] = torch.arange(40) % 2, 2
    data = Dataset.from_arrays(train=(x, y), test=split(30, 2), title="own")
    assert int((data.train.targets == 2).sum()) == 1
    assert torch.bincount(data.val.targets).tolist() == [2, 2]
    with pytest.raises(UserError, match="no class has a second training input to be held out"):
        Dataset.from_arrays(train=(x[:1], y[:1]), test=split(30, 2), title="own")
