"""Contender: the reference pipeline, a reimplementation of how the three-regime study's code trains and measures.

One network at a time, eager; images from a DataLoader with four worker processes and per-image transforms; losses and
hits fetched with ``.item()`` at every step; evaluation on the test set after every epoch; a full pass for BatchNorm
statistics and one for the error at each of eleven points of the linear path; PyHessian for curvature.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regimes.data.dataset import Split
from regimes.pruners.prune import prune
from regimes.research.speed.harness import Case
from regimes.research.speed.workloads import data_of, load_trained, mean, new_network
from regimes.torchvision_import import torchvision

Masks = dict[str, Tensor] | None


class Images(TorchDataset[tuple[Tensor, int]]):
    """Data set of single images, as in torchvision: PIL images with a chain of transforms."""

    def __init__(self, split: Split, augment: bool) -> None:
        from torchvision import transforms

        # Stored as bytes, as CIFAR-10 is; standardised again on the way out, as the study's transforms do.
        low, high = float(split.inputs.min()), float(split.inputs.max())
        self.pixels = ((split.inputs - low) / (high - low) * 255).byte()
        self.targets = split.targets.tolist()
        side = split.inputs.shape[-1]
        crop = [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()] if augment else []
        channels = split.inputs.shape[1]
        scale = transforms.Normalize([-low / (high - low)] * channels, [1 / (high - low)] * channels)
        self.transform = transforms.Compose([transforms.ToPILImage(), *crop, transforms.ToTensor(), scale])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), self.targets[index]


def loader(split: Split, case: Case, augment: bool, train: bool, seed: int = 0) -> DataLoader[tuple[Tensor, int]]:
    """Return a loader with four worker processes, seeded from its generator."""
    torchvision()
    images, random = Images(split, augment), torch.Generator().manual_seed(seed)
    return DataLoader(images, batch_size=case["batch"], shuffle=train, num_workers=4, drop_last=train, generator=random)


def train_network(
    model: nn.Module, split: Split, test: Split, case: Case, epochs: int, seed: int, masks: Masks = None
) -> float:
    """Train in place and return the test error after the last epoch."""
    device = case.get("device", "cpu")
    images, test_images = loader(split, case, case["augment"], True, seed), loader(test, case, False, False)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(images))
    criterion = nn.CrossEntropyLoss()
    error = math.nan
    for _ in range(epochs):
        model.train()
        total, hits = 0.0, 0
        for inputs, targets in images:
            inputs, targets = inputs.to(device), targets.to(device)
            optimiser.zero_grad()
            answers = model(inputs)
            loss = criterion(answers, targets)
            loss.backward()
            optimiser.step()
            schedule.step()
            for name, parameter in model.named_parameters():
                if masks is not None and name in masks:
                    parameter.data *= masks[name]
            total += loss.item() * len(targets)
            hits += (answers.argmax(1) == targets).sum().item()
        error = error_rate(model, test_images, device)
    return error


def error_rate(model: nn.Module, images: DataLoader[tuple[Tensor, int]], device: str) -> float:
    """Return the fraction of misclassified inputs."""
    model.eval()
    total, hits, count = 0.0, 0, 0
    with torch.no_grad():
        for inputs, targets in images:
            inputs, targets = inputs.to(device), targets.to(device)
            answers = model(inputs)
            total += F.cross_entropy(answers, targets).item() * len(targets)
            hits += (answers.argmax(1) == targets).sum().item()
            count += len(targets)
    return 1 - hits / count


def measure_lmc(a: nn.Module, b: nn.Module, split: Split, case: Case) -> float:
    """Return LMC from 11 points."""
    device = case.get("device", "cpu")
    images = loader(split, case, False, False)
    walker, errors = copy.deepcopy(a), []
    for index in range(11):
        t = index / 10
        for p, x, y in zip(walker.parameters(), a.parameters(), b.parameters(), strict=True):
            p.data.copy_((1 - t) * x.data + t * y.data)
        for module in walker.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        walker.train()
        with torch.no_grad():
            for inputs, _ in images:
                walker(inputs.to(device))
        errors.append(error_rate(walker, images, device))
    middle = (errors[0] + errors[-1]) / 2
    return max((middle - each for each in errors[1:-1]), key=abs)


def measure_cka(a: nn.Module, b: nn.Module, split: Split, case: Case) -> float:
    """Return the CKA of the softmax outputs."""
    device, outputs = case.get("device", "cpu"), []
    for model in (a, b):
        model.eval()
        with torch.no_grad():
            parts = [model(inputs.to(device)).softmax(1).cpu() for inputs, _ in loader(split, case, False, False)]
        out = torch.cat(parts).double()
        outputs.append(out - out.mean(0))
    x, y = outputs
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def measure_curvature(model: nn.Module, split: Split, probes: int, steps: int) -> tuple[float, float]:
    """Return PyHessian's trace with a fixed number of probes, and its top eigenvalue to a tolerance of 1 %."""
    from pyhessian import hessian

    model.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hessian(model, nn.CrossEntropyLoss(), data=(split.inputs, split.targets), cuda=split.inputs.is_cuda)
        trace = mean([float(each) for each in found.trace(maxIter=probes, tol=-math.inf)])
        (top,), _ = found.eigenvalues(maxIter=steps, tol=1e-2, top_n=1)
    model.zero_grad(set_to_none=True)
    return trace, float(top)


def sweep(case: Case) -> dict[str, Any]:
    """Train a dense network; prune it to each density, retrain and measure; units are cells (densities)."""
    data = data_of(case)
    torchvision()
    started = time.perf_counter()
    dense = new_network(case, case["round"])
    train_network(dense, data.train, data.test, case, case["epochs"], seed=1000 + case["round"])
    errors, lines = [], []
    for density in case["densities"]:
        mask = prune(dense, density)
        copies = []
        for seed in range(case["copies"]):
            pruned = copy.deepcopy(dense)
            mask.apply(pruned)
            errors.append(train_network(pruned, data.train, data.test, case, case["epochs"], seed, mask.layers))
            error_rate(pruned, loader(data.train, case, False, False), "cpu")
            few = Split(data.train.inputs[: case["hessian_images"]], data.train.targets[: case["hessian_images"]])
            measure_curvature(pruned, few, case["probes"], case["power_steps"])
            copies.append(pruned)
        for i, j in case["pairs"]:
            lines.append(measure_lmc(copies[i], copies[j], data.train, case))
            measure_cka(copies[i], copies[j], data.train, case)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "units": len(case["densities"]), "test_error": mean(errors), "lmc": mean(lines)}


def training(case: Case) -> dict[str, Any]:
    """Train one network; units are epochs over the case's images."""
    data = data_of(case)
    model = new_network(case, case["round"])
    torchvision()
    started = time.perf_counter()
    error = train_network(model, data.train, data.test, case, case["epochs"], seed=case["round"])
    return {"seconds": time.perf_counter() - started, "units": case["epochs"], "test_error": error}


def pair(case: Case) -> dict[str, Any]:
    """Measure LMC and CKA of one pair."""
    split = data_of(case).train
    a, b = load_trained(case, 0), load_trained(case, 1)
    torchvision()
    started = time.perf_counter()
    lmc, cka = measure_lmc(a, b, split, case), measure_cka(a, b, split, case)
    return {"seconds": time.perf_counter() - started, "units": 1, "lmc": lmc, "cka": cka}
