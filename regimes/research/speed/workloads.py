"""Workloads of the contenders: data, networks, and trained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from regimes.data import DATASETS
from regimes.data.dataset import Dataset, Split
from regimes.models.build import build
from regimes.registry import lookup
from regimes.research.speed.harness import Case

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {}),
    "preresnet14-w8": ("preresnet", {"depth": 14, "width": 8}),
    "preresnet20": ("preresnet", {"depth": 20, "width": 16}),
}


def data_of(case: Case) -> Dataset:
    """Return the case's data: digits, or colour images of 32x32 from a folder or enlarged digits."""
    if case["model"] != "preresnet20":
        digits: Dataset = lookup(DATASETS, "digits", "data set")()
        return digits
    if case.get("images"):
        count = case.get("count", 0)
        make = lookup(DATASETS, "imagefolder", "data set")
        folder: Dataset = make(root=case["images"], images=count, test_images=min(2000, count or 2000))
        train, val, test = (Split(each.inputs[:], each.targets) for each in (folder.train, folder.val, folder.test))
        return Dataset(train, val, test, folder.classes, folder.title)  # floats: the same work for every contender
    return enlarged_digits(case.get("count", 0))


def enlarged_digits(count: int = 0) -> Dataset:
    """Return the digits as ``count`` colour images of 32x32, repeated as necessary; needs no download."""
    digits: Dataset = lookup(DATASETS, "digits", "data set")()

    def grow(split: Split, count: int) -> Split:
        which = torch.arange(count or len(split.targets)) % len(split.targets)
        images = F.interpolate(split.inputs, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
        return Split(images[which].contiguous(), split.targets[which])

    splits = grow(digits.train, count), grow(digits.val, 0), grow(digits.test, 0)
    return Dataset(*splits, digits.classes, "digits at 32x32")


def by_worth(cases: Mapping[str, Any], device: str) -> list[tuple[str, Any]]:
    """Return the cases of a benchmark in order: on a GPU the large network first, for time may be short."""
    return list(cases.items()) if device == "cpu" else list(cases.items())[::-1]


def new_network(case: Case, seed: int) -> nn.Module:
    """Return the case's network with fresh weights, on its device."""
    name, options = MODELS[case["model"]]
    shape = (3, 32, 32) if case["model"] == "preresnet20" else (1, 8, 8)
    return build(name, options, shape, 10, seed).to(case.get("device", "cpu"))


def load_trained(case: Case, seed: int = 0) -> nn.Module:
    """Return a network that `train_and_save` trained earlier in the benchmark."""
    model = new_network(case, seed)
    model.load_state_dict(torch.load(Path(case["folder"]) / f"{case['model']}-{seed}.pt", weights_only=True))
    return model.to(case.get("device", "cpu"))


def train_and_save(case: Case) -> dict[str, Any]:
    """Train one network per seed in ``case["seeds"]`` and save their weights in the case's folder.

    All start from one trained network and are trained for the same number of epochs again, like retrained copies.
    """
    import time

    from regimes.research.speed.pytorch_arm import train_network

    started = time.perf_counter()
    data = data_of(case)
    epochs, seeds = case["epochs"], case["seeds"]
    start = new_network(case, 0)
    train_network(start, data.train, case, epochs, seed=100)
    for seed in seeds:
        copy = new_network(case, 0)
        copy.load_state_dict(start.state_dict())
        train_network(copy, data.train, case, epochs, seed=seed)
        torch.save(copy.cpu().state_dict(), Path(case["folder"]) / f"{case['model']}-{seed}.pt")
    return {"seconds": time.perf_counter() - started, "units": len(seeds)}


def fixed_subset(split: Split, count: int) -> Split:
    """Return a fixed random subset of a split."""
    order = torch.randperm(len(split.targets), generator=torch.Generator().manual_seed(0))[:count]
    return Split(split.inputs[order], split.targets[order])


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN for an empty sequence."""
    return sum(values) / len(values) if values else float("nan")
