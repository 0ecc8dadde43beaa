"""MNIST-1D: synthetic signals of 40 numbers in ten classes (Greydanus and Kobak 2024, arXiv 2011.14439)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regimes.data.dataset import Dataset
from regimes.errors import UserError

Signal = NDArray[np.float64]

# Outline of each digit, 0 to 9, as published (github.com/greydanus/mnist1d, Apache-2.0).
OUTLINES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
PADDING = (36, 60)  # zeros appended to an outline: smallest and largest number
CANVAS = 72  # length at which a signal is shifted and receives its noise
LENGTH = 40
SCALE_RANGE = 0.4  # the factor is uniform in 1 ± half of it
MAX_SHIFT = 48
BACKGROUND = 0.25  # standard deviation of the correlated noise beside the outline, before smoothing
SMOOTHING = 2.0  # width of the Gaussian filter of that noise
SHEAR_RANGE = 0.75  # the slope is uniform in 0 ± half of it


def mnist1d(train: int = 2000, val: int = 1000, test: int = 4000, noise: float = 0.04, seed: int = 42) -> Dataset:
    """Return MNIST-1D signals as float32 inputs (n, 1, 40), standardised over all splits together.

    Synthetic data, generated in about a second, and not the published data set number for number: the templates and
    transformations are those of Greydanus and Kobak 2024 (arXiv 2011.14439; code under Apache-2.0), but the random
    generator is NumPy's PCG64, labels are shuffled before the signals are drawn, white noise has a standard deviation
    of 0.04 (published: 0.02), and there are 2,000 training, 1,000 validation and 4,000 test signals (published: 4,000
    training and 1,000 test signals).

    Args:
        train, val, test: number of signals in each split.
        noise: standard deviation of the white noise.
        seed: seed of the data (not of the networks trained on them).

    Raises:
        UserError: a split without signals.
    """
    if min(train, val, test) < 1:
        raise UserError(f"mnist1d: train = {train}, val = {val}, test = {test}: allowed: 1 or more each")
    random = np.random.default_rng(seed)
    shapes = templates()
    labels = random.permutation(np.arange(train + val + test) % len(shapes))
    inputs = np.array([signal(shapes[label], noise, random) for label in labels], dtype=np.float32)[:, None]
    inputs, targets = (inputs - inputs.mean()) / inputs.std(), labels.astype(np.int64)
    parts = (np.split(each, [train, train + val]) for each in (inputs, targets))
    training, validation, testing = zip(*parts, strict=True)
    return Dataset.from_arrays(training, testing, validation, title=f"MNIST-1D (synthetic), {train:,} signals")


def templates() -> Signal:
    """Return the outlines (10, 12) with zero first value and standard deviation 1/6."""
    shapes = np.array(OUTLINES)
    shapes = shapes - shapes.mean(axis=1, keepdims=True)
    shapes /= shapes.std(axis=1, keepdims=True)
    return (shapes - shapes[:, :1]) / 6


def signal(template: Signal, noise: float, random: np.random.Generator) -> Signal:
    """Draw one signal (40,) of a template: padded, scaled, shifted, with correlated and white noise, sheared."""
    from scipy.ndimage import gaussian_filter

    # The small constant tells the outline from the padding.
    padded = np.concatenate([template + 1e-8, np.zeros(random.integers(PADDING[0], PADDING[1] + 1))])
    wide = resample(padded, CANVAS) * (1 + SCALE_RANGE * (random.random() - 0.5))
    wide = np.roll(wide, random.integers(MAX_SHIFT))
    wide = np.where(wide != 0, wide, gaussian_filter(BACKGROUND * random.standard_normal(CANVAS), SMOOTHING))
    wide = wide + noise * random.standard_normal(CANVAS)
    wide = wide - SHEAR_RANGE * (random.random() - 0.5) * np.linspace(-0.5, 0.5, CANVAS)
    return resample(wide, LENGTH)


def resample(values: Signal, length: int) -> Signal:
    """Return a signal interpolated linearly to another length."""
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(values)), values)
