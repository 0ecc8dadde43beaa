"""Data, network and trained weights of one's own, named in checkpoints.toml; run it to write the weights."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import regimes


def data(test_fraction=0.25):
    """Return the data set. Every call must return the same data."""
    digits = load_digits()
    # Your inputs and targets here: the training and test data of your networks.
    inputs = ((digits.data - 4.9) / 6.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(inputs))
    test, train = np.split(order, [int(test_fraction * len(inputs))])
    return regimes.Dataset.from_arrays(
        train=(inputs[train], digits.target[train]),
        test=(inputs[test], digits.target[test]),
        title="handwritten digits",
    )


def net(input_shape, classes, width=32):
    """Return a network with fresh weights, of the kind that the files hold."""
    return nn.Sequential(
        nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


def train(rate, seed, epochs=8):
    """Return a trained network; your own training takes the place of this."""
    torch.manual_seed(seed)
    digits = data()
    model = net(digits.input_shape, digits.classes)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train.targets)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(digits.train.inputs[batch]), digits.train.targets[batch]).backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    folder = Path(__file__).parent / "checkpoints"
    for rate in (0.001, 0.003, 0.01):
        (folder / f"lr{rate}").mkdir(parents=True, exist_ok=True)
        for seed in range(2):
            torch.save(train(rate, seed).state_dict(), folder / f"lr{rate}/seed{seed}.pt")
    print(f"wrote {folder}/lr*/seed*.pt")
