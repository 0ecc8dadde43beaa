"""Synthetic data: Gaussian clusters of any shape, generated in milliseconds, for tests and first experiments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regimes.data.dataset import Dataset


def synthetic(
    shape: Sequence[int] = (16,),
    classes: int = 4,
    train: int = 512,
    test: int = 256,
    spread: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Return ``classes`` Gaussian clusters around random unit-variance centres.

    Args:
        shape: shape of one input, e.g. ``[16]`` for an MLP or ``[3, 8, 8]`` for a convolutional network.
        classes: number of clusters.
        train: number of training inputs, a tenth of which is held out for validation.
        test: number of test inputs.
        spread: standard deviation within a cluster; larger is harder.
        seed: seed of the data (not of the networks trained on them).
    """
    random = np.random.default_rng(seed)
    centres = random.standard_normal((classes, *shape))

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % classes
        inputs = centres[labels] + spread * random.standard_normal((count, *shape))
        return inputs.astype(np.float32), labels.astype(np.int64)

    return Dataset.from_arrays(sample(train), sample(test), title=f"{classes} Gaussian clusters")
