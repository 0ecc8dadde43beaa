"""Contender: plain, well-written PyTorch for one network; data on the device, no loader, no ``.item()`` in a step."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.data.augment import CROP_FLIP, NONE
from regimes.data.dataset import Split
from regimes.pruners.prune import prune
from regimes.research.speed.harness import Case
from regimes.research.speed.workloads import data_of, load_trained, mean, new_network

Masks = dict[str, Tensor] | None


def train_network(model: nn.Module, split: Split, case: Case, epochs: int, seed: int, masks: Masks = None) -> None:
    """Train in place by SGD with a cosine learning rate schedule."""
    random = torch.Generator().manual_seed(seed)
    device = case.get("device", "cpu")
    inputs, targets = split.inputs.to(device), split.targets.to(device)
    augment = CROP_FLIP if case["augment"] else NONE
    batch, parameters = case["batch"], dict(model.named_parameters())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = len(targets) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(targets), generator=random).to(device)
        draws = augment.draw(len(targets), tuple(inputs.shape[1:]), random).to(device)
        for step in range(steps):
            batch_slice = slice(step * batch, (step + 1) * batch)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(
                model(augment.apply(inputs[order[batch_slice]], draws[batch_slice])), targets[order[batch_slice]]
            ).backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for name, mask in (masks or {}).items():
                    parameters[name].mul_(mask)


@torch.no_grad()
def error_rate(model: nn.Module, split: Split, device: str = "cpu") -> float:
    """Return the fraction of misclassified inputs."""
    model.eval()
    found = 0
    for inputs, targets in zip(split.inputs.split(128), split.targets.split(128), strict=True):
        found += int((model(inputs.to(device)).argmax(1) != targets.to(device)).sum())
    return found / len(split.targets)


@torch.no_grad()
def measure_lmc(a: nn.Module, b: nn.Module, split: Split, device: str = "cpu") -> float:
    """Return LMC from 11 points: one pass to re-estimate BatchNorm statistics, one for the error."""
    walker = copy.deepcopy(a)
    norms = [each for each in walker.modules() if isinstance(each, nn.BatchNorm2d)]
    errors = []
    for index in range(11):
        for p, x, y in zip(walker.parameters(), a.parameters(), b.parameters(), strict=True):
            p.copy_(torch.lerp(x, y, index / 10))
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        walker.train()
        for inputs in split.inputs.split(128):
            walker(inputs.to(device))
        errors.append(error_rate(walker, split, device))
    middle = (errors[0] + errors[-1]) / 2
    return max((middle - each for each in errors[1:-1]), key=abs)


@torch.no_grad()
def measure_cka(a: nn.Module, b: nn.Module, split: Split, device: str = "cpu") -> float:
    """Return the CKA of the softmax outputs."""
    features = []
    for model in (a, b):
        model.eval()
        out = torch.cat([model(inputs.to(device)).softmax(1) for inputs in split.inputs.split(128)]).double()
        features.append(out - out.mean(0))
    x, y = features
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def measure_curvature(model: nn.Module, split: Split, probes: int, steps: int, seed: int) -> tuple[float, float]:
    """Return the Hessian trace (Hutchinson) and top eigenvalue (power iteration), with a retained graph."""
    random = torch.Generator().manual_seed(seed)
    model.eval()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(split.inputs), split.targets), parameters, create_graph=True)

    def product(vectors: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(gradient, parameters, vectors, retain_graph=True)

    draws = []
    for _ in range(probes):
        signs = [torch.randint(0, 2, p.shape, generator=random).to(p) * 2 - 1 for p in parameters]
        draws.append(float(sum((one * other).sum() for one, other in zip(signs, product(signs), strict=True))))
    vector = [torch.randn(p.shape, generator=random).to(p) for p in parameters]
    value, before = math.nan, math.nan
    for _ in range(steps):
        if abs(value - before) < 1e-2 * abs(value):
            break
        length = torch.sqrt(torch.stack([v.square().sum() for v in vector]).sum())
        vector = [v / length for v in vector]
        image = product(vector)
        before, value = value, float(sum((one * other).sum() for one, other in zip(vector, image, strict=True)))
        vector = list(image)
    return mean(draws), value


def sweep(case: Case) -> dict[str, Any]:
    """Train a dense network; prune it to each density, retrain and measure; units are cells (densities)."""
    data = data_of(case)
    started = time.perf_counter()
    dense = new_network(case, case["round"])
    train_network(dense, data.train, case, case["epochs"], seed=1000 + case["round"])
    errors, lines = [], []
    for density in case["densities"]:
        mask = prune(dense, density)
        copies = []
        for seed in range(case["copies"]):
            copy_ = copy.deepcopy(dense)
            mask.apply(copy_)
            train_network(copy_, data.train, case, case["epochs"], seed, mask.layers)
            errors.append(error_rate(copy_, data.test))
            error_rate(copy_, data.train)
            few = Split(data.train.inputs[: case["hessian_images"]], data.train.targets[: case["hessian_images"]])
            measure_curvature(copy_, few, case["probes"], case["power_steps"], seed)
            copies.append(copy_)
        for i, j in case["pairs"]:
            lines.append(measure_lmc(copies[i], copies[j], data.train))
            measure_cka(copies[i], copies[j], data.train)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "units": len(case["densities"]), "test_error": mean(errors), "lmc": mean(lines)}


def training(case: Case) -> dict[str, Any]:
    """Train one network; units are epochs over the case's images."""
    data = data_of(case)
    model = new_network(case, case["round"])
    started = time.perf_counter()
    train_network(model, data.train, case, case["epochs"], seed=case["round"])
    error = error_rate(model, data.test, case.get("device", "cpu"))
    return {"seconds": time.perf_counter() - started, "units": case["epochs"], "test_error": error}


def pair(case: Case) -> dict[str, Any]:
    """Measure LMC and CKA of one pair."""
    device = case.get("device", "cpu")
    split = data_of(case).train.to(torch.device(device), torch.float32)
    a, b = load_trained(case, 0), load_trained(case, 1)
    measure_lmc(a, b, Split(split.inputs[:256], split.targets[:256]), device)
    started = time.perf_counter()
    lmc, cka = measure_lmc(a, b, split, device), measure_cka(a, b, split, device)
    return {"seconds": time.perf_counter() - started, "units": 1, "lmc": lmc, "cka": cka}
