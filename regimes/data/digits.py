"""Handwritten digits bundled with scikit-learn: 1,797 real 8x8 images, without download."""

from __future__ import annotations

import numpy as np

from regimes.data.dataset import Dataset, Split, hold_out


def digits(test_fraction: float = 0.2, val_fraction: float = 0.2, label_noise: float = 0.0) -> Dataset:
    """Return the digits as float32 images (n, 1, 8, 8), standardised with the training split's mean and deviation.

    The test split is drawn first (by default a fifth of each class), then the validation split (a fifth of the
    rest). Both draws are fixed, independent of the seeds of a sweep: 1,151 training, 287 validation and 359 test
    images.

    Args:
        test_fraction: fraction of all images used for the test split.
        val_fraction: fraction of the remaining images used for the validation split.
        label_noise: fraction of training labels replaced by a random other class; validation and test labels are not
            changed.
    """
    import torch
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    whole = Split(
        torch.tensor(images.reshape(-1, 1, 8, 8) / 16.0, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )
    rest, test = hold_out(whole, test_fraction, seed=0)
    train, val = hold_out(rest, val_fraction, seed=1)
    mean, deviation = train.inputs.mean(), train.inputs.std()
    train, val, test = (Split((each.inputs - mean) / deviation, each.targets) for each in (train, val, test))
    if label_noise:
        random = np.random.default_rng(2)
        wrong = random.random(len(train.targets)) < label_noise
        shift = torch.from_numpy(np.where(wrong, random.integers(1, 10, len(wrong)), 0))
        train = Split(train.inputs, (train.targets + shift) % 10)
    noise = f", {label_noise:.3g} of the training labels wrong" if label_noise else ""
    return Dataset(train, val, test, classes=10, title=f"handwritten digits (scikit-learn){noise}")
