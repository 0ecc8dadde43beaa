"""A table and a network of one's own, named in tabular.toml."""

import numpy as np
from sklearn.datasets import load_breast_cancer
from torch import nn

import regimes


def data(target="class", test_fraction=0.25):
    """Return the data set. Every call must return the same data."""
    table = load_breast_cancer()
    # Your table here: numbers (n, columns), and a target for each row.
    rows = table.data
    targets = {
        "class": table.target,  # integers 0, 1, 2, ...: classes
        "logit": table.target.astype(np.float32),  # floats 0 and 1: one output
        "number": np.log(table.data[:, 3]).astype(np.float32),  # other floats: a regression, here of the area
    }[target]
    if target == "number":
        rows = np.delete(rows, 3, axis=1)
    order = np.random.default_rng(0).permutation(len(rows))
    test, train = np.split(order, [int(test_fraction * len(rows))])
    rows = ((rows - rows[train].mean(axis=0)) / rows[train].std(axis=0)).astype(np.float32)
    return regimes.Dataset.from_arrays(
        train=(rows[train], targets[train]),
        test=(rows[test], targets[test]),
        val_fraction=0.15,  # of the training rows, held out; or val=(rows, targets)
        title="breast cancer (scikit-learn)",
    )


def net(input_shape, classes, width=64):
    """Return a network with fresh weights; ``classes`` is 1 for one float per row."""
    return nn.Sequential(
        nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )
