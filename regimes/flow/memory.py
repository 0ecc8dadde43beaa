"""How much memory a fleet takes and how much there is: a fleet is as large as fits."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from regimes.flow.lab import Lab
from regimes.spec.recipe import Recipe

SHARE = 0.6  # of the free memory that all workers' fleets together may take
PROCESS = 350_000_000  # bytes of a worker that has imported torch and trains something small
COPIES = 6  # of the weights in training: themselves, gradients, momentum, and what a step makes on its way
SLACK = 2.0  # what a backward pass holds at once, over what the forward pass kept for it


def bytes_per_network(lab: Lab, recipe: Recipe) -> int:
    """Memory of one network in training: copies of its weights, and what its forward pass keeps for the backward one.

    The latter is counted on the very model and batch, by the tensors that autograd saves.
    """
    model = lab.new_model(seed=0).train()
    weights = {each.untyped_storage().data_ptr(): each.nbytes for each in model.state_dict().values()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is counted twice

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    images = min(recipe.batch_size, 64, len(lab.data.train.targets))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        F.cross_entropy(model(lab.data.train.inputs[:images]), lab.data.train.targets[:images])
    activations = sum(size for address, size in kept.items() if address not in weights)
    return int(COPIES * sum(weights.values()) + SLACK * activations * recipe.batch_size / images)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: on a CUDA device its own, else the machine's or this container's, whichever is less."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    lines = _read("/proc/meminfo").splitlines()
    free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    most, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if most.isdigit() and used.isdigit():
        free.append(int(most) - int(used))
    return max(0, min(free))


def networks_that_fit(lab: Lab, recipe: Recipe, workers: int) -> int:
    """How many networks may be trained at once in each of so many workers; at least 1."""
    budget = SHARE * free_bytes(lab.device) / max(1, workers)
    if lab.device.type == "cpu":
        budget -= PROCESS
    return max(1, int(budget // bytes_per_network(lab, recipe)))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
