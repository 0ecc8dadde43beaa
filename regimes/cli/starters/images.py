"""Images and a network of one's own, named in images.toml."""

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

import regimes


def data(test_fraction=0.25):
    """Return the data set. Every call must return the same data."""
    digits = load_digits()
    # Your images here: floats (n, channels, height, width), scaled to about mean 0 and deviation 1.
    images = ((digits.images[:, None] - 4.9) / 6.0).astype(np.float32)
    labels = digits.target  # class numbers 0, 1, 2, ...
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [int(test_fraction * len(labels))])
    return regimes.Dataset.from_arrays(
        train=(images[train], labels[train]),
        test=(images[test], labels[test]),
        val_fraction=0.1,  # of the training images, held out; or val=(images, labels)
        title="handwritten digits",
    )


def net(input_shape, classes, width=8):
    """Return a network with fresh weights, for one input's shape and the number of classes."""
    channels = input_shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )
