"""MNIST-1D: the published transformations from equal draws, and what is said of options that do not fit."""

from __future__ import annotations

import importlib
import types

import numpy as np
import pytest
import torch

from regimes import UserError
from regimes.data import mnist1d as module
from regimes.data.mnist1d import mnist1d, signal, templates

UNIFORM_DRAWS = 3  # of a signal: padding, scale, shear


class PublishedDraws:
    """Stands in for ``numpy.random`` in the published code: its draws, in its order, from our generator."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.calls = 0

    def rand(self) -> float:
        self.calls += 1
        if self.calls % UNIFORM_DRAWS != 1:
            return self.random.random()
        low, high = module.PADDING  # the published code makes an integer of its first draw
        return (self.random.integers(low, high + 1) - low + 0.5) / (high - low + 1)

    def choice(self, count: int) -> int:
        return int(self.random.integers(count))

    def randn(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape)


def test_signals_are_the_published_ones_from_equal_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    published = pytest.importorskip("mnist1d", reason="pip install mnist1d")
    code = importlib.import_module("mnist1d.transform")  # the package has a function of the same name
    shapes = published.get_templates()
    assert np.allclose(templates(), shapes["x"], rtol=0, atol=1e-15)
    args = published.get_dataset_args()
    assert args.iid_noise_scale == 0.02
    monkeypatch.setattr(code, "np", types.SimpleNamespace(**{**vars(np), "random": PublishedDraws(7)}))
    random = np.random.default_rng(7)
    for number in range(300):
        theirs, _ = code.transform(shapes["x"][number % 10], shapes["t"], args)
        ours = signal(templates()[number % 10], args.iid_noise_scale, random)
        assert np.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_sizes_seed_and_noise_are_options() -> None:
    small = {"train": 60, "val": 20, "test": 30}
    data = mnist1d(**small)
    assert data.input_shape == (1, 40)
    assert data.classes == 10
    assert [len(split.targets) for split in (data.train, data.val, data.test)] == [60, 20, 30]
    whole = torch.cat([data.train.inputs, data.val.inputs, data.test.inputs])
    assert float(whole.mean()) == pytest.approx(0, abs=1e-6)
    assert float(whole.std(correction=0)) == pytest.approx(1, rel=1e-5)
    assert mnist1d(**small).fingerprint == data.fingerprint
    assert mnist1d(**small, seed=1).fingerprint != data.fingerprint
    assert mnist1d(**small, noise=0.02).fingerprint != data.fingerprint
    with pytest.raises(UserError, match=r"val = 0, .*allowed: 1 or more each"):
        mnist1d(val=0)


def test_every_class_is_as_frequent() -> None:
    data = mnist1d(train=600, val=200, test=200)
    labels = torch.cat([data.train.targets, data.val.targets, data.test.targets])
    assert torch.bincount(labels).tolist() == [100] * 10
