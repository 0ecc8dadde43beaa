"""How much memory a fleet takes and how much there is: a fleet is as large as fits."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimes.config.recipe import Recipe
from regimes.experiment.context import RunContext, one_thread
from regimes.models.build import seeded

SHARE = 0.6  # of the free memory that all workers' fleets together may take
PROCESS = 450_000_000  # bytes of a worker that has imported torch and trains something small
COPIES = 6  # of the weights in training: themselves, gradients, momentum, and what a step makes on its way
SLACK = 2.0  # what a backward pass holds at once, over what the forward pass kept for it
TWICE = 2.4  # likewise, when a gradient is differentiated again
SINGLE = (
    3 * 2**27
)  # bytes that gradients of single images take, a group at a time, and what the allocator keeps of them


def bytes_per_network(context: RunContext, recipe: Recipe) -> int:
    """Memory of one network in training, counted on the very model; see `bytes_in_training`."""
    train = context.data.train
    images = min(recipe.batch_size, 64, len(train.targets))
    few = train.inputs[:images].clone(), train.targets[:images].clone()
    with one_thread(), seeded(0):
        return bytes_in_training(context.new_model(seed=0), *few, recipe.batch_size, recipe.training_loss)


def bytes_in_training(
    model: nn.Module, inputs: Tensor, targets: Tensor, batch: int, loss_fn: Callable[..., Tensor] = F.cross_entropy
) -> int:
    """Copies of a model's weights, and what its forward pass keeps for the backward one, scaled up to a batch size.

    The latter is the size of the tensors that autograd saves for a few images, which must own their memory.
    """
    model.train()

    def forward() -> Tensor:
        return loss_fn(model(inputs), targets)

    weights, activations = _kept_for_backward(model, forward)
    return int(COPIES * weights + SLACK * activations * batch / len(inputs))


def bytes_in_measuring(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    images: int,
    vectors: int,
    loss_fn: Callable[..., Tensor] = F.cross_entropy,
) -> int:
    """What the Hessian's products hold: so many vectors of the weights' size, the graph of the gradient of so many
    images, counted on a few of them, and gradients of single images."""
    model.eval()

    def gradient() -> tuple[Tensor, ...]:
        trained = [each for each in model.parameters() if each.requires_grad]
        return torch.autograd.grad(loss_fn(model(inputs), targets), trained, create_graph=True, allow_unused=True)

    with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
        weights, graph = _kept_for_backward(model, gradient)
    return int((COPIES + vectors) * weights + SINGLE + TWICE * graph * images / len(inputs))


def _kept_for_backward(model: nn.Module, run: Callable[[], object]) -> tuple[int, int]:
    """Bytes of a model's state, and of what autograd keeps beside it while something runs."""
    weights = {each.untyped_storage().data_ptr(): each.nbytes for each in model.state_dict().values()}
    kept: dict[int, int] = {}
    alive: list[object] = []  # so that no address is counted twice

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive.append(run())
    return sum(weights.values()), sum(size for address, size in kept.items() if address not in weights)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: on a CUDA device its own, else the machine's or this container's, whichever is less."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [2**32]
    lines = _read("/proc/meminfo").splitlines()
    free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    most, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if most.isdigit() and used.isdigit():
        lines = _read("/sys/fs/cgroup/memory.stat").splitlines()
        cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free.append(int(most) - int(used) + cached)
    return max(0, min(free))


def networks_that_fit(context: RunContext, recipe: Recipe, workers: int) -> int:
    """How many networks may be trained at once in each of so many workers; at least 1."""
    budget = SHARE * free_bytes(context.device) / max(1, workers)
    if context.device.type == "cpu":
        budget -= PROCESS
    return max(1, int(budget // bytes_per_network(context, recipe)))


def peak_bytes() -> int:
    """Most memory that this process has had so far.

    On Linux the kernel's mark of this very program: ``ru_maxrss`` also holds what the process that started it had."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
