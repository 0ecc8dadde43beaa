"""Memory estimates: bytes of a network in training or in measurement, and how many networks fit."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.data.inputs import Inputs, call
from regimes.experiment.context import RunContext, one_thread
from regimes.landscape.convolution_derivatives import FastConvolutionDerivatives
from regimes.landscape.hessian_operator import dense_gradients
from regimes.losses.functions import loss_value
from regimes.models.build import seeded
from regimes.training.update_rules import buffers_per_weight

MAX_MEMORY_SHARE = 0.6  # of a device's free memory, for the fleets of all workers on it
PROCESS_BYTES = 450_000_000  # a worker process with torch, training a small model
WEIGHT_COPIES = 6  # in training: weights, gradients, momentum, and temporaries of a step
BACKWARD_FACTOR = 2.0  # peak of a backward pass over what the forward pass saved for it
DOUBLE_BACKWARD_FACTOR = 2.4  # likewise, for the gradient of a gradient
PER_SAMPLE_BYTES = 3 * 2**27  # per-sample gradients, a group at a time, and what the allocator keeps of them


def bytes_per_network(context: RunContext, recipe: Recipe) -> int:
    """Return the bytes of one network in training, counted on the model itself; see `bytes_in_training`."""
    train = context.data.train
    images = min(recipe.batch_size, 64, len(train.targets))
    few = train.inputs[:images].clone(), train.targets[:images].clone()
    with one_thread(), seeded(0):
        buffers = buffers_per_weight(recipe)
        return bytes_in_training(context.new_model(seed=0), *few, recipe.batch_size, recipe.training_loss, buffers)


def bytes_in_training(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    batch: int,
    loss_fn: Callable[..., Tensor] = F.cross_entropy,
    buffers: int = 1,
) -> int:
    """Return the bytes of a model in training: copies of its weights, and saved activations scaled to a batch size.

    The latter are the tensors that autograd saves for a few images, which must own their memory. ``buffers`` is the
    optimiser's number of buffers per weight.
    """
    model.train()

    def forward() -> Tensor:
        return loss_value(loss_fn, call(model, inputs), targets)

    weights, activations = _kept_for_backward(model, forward)
    return int((WEIGHT_COPIES + buffers - 1) * weights + BACKWARD_FACTOR * activations * batch / len(inputs))


def bytes_in_measuring(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    images: int,
    vectors: int,
    loss_fn: Callable[..., Tensor] = F.cross_entropy,
) -> int:
    """Return the bytes of Hessian-vector products: ``vectors`` of the size of the weights, the graph of the gradient of
    ``images`` images, extrapolated from a few, and per-sample gradients."""

    def gradient() -> tuple[Tensor, ...]:
        trained = [each for each in model.parameters() if each.requires_grad]
        loss = loss_value(loss_fn, call(model, inputs), targets)
        return torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)

    with dense_gradients(model), FastConvolutionDerivatives():  # as in HessianOperator
        weights, graph = _kept_for_backward(model, gradient)
    return int(
        (WEIGHT_COPIES + vectors) * weights + PER_SAMPLE_BYTES + DOUBLE_BACKWARD_FACTOR * graph * images / len(inputs)
    )


def _kept_for_backward(model: nn.Module, run: Callable[[], object]) -> tuple[int, int]:
    """Bytes of a model's state, and of the other tensors that autograd saves while ``run`` runs."""
    weights = {each.untyped_storage().data_ptr(): each.nbytes for each in model.state_dict().values()}
    kept: dict[int, int] = {}
    alive: list[object] = []  # so that no address is reused

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive.append(run())
    return sum(weights.values()), sum(size for address, size in kept.items() if address not in weights)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a CUDA device, or the smaller of the machine's and the container's free memory."""
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


def release_memory(device: torch.device) -> None:
    """Return the memory of discarded tensors to a CUDA device, for other processes."""
    if device.type == "cuda":
        gc.collect()  # engines contain reference cycles
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait for all work that was launched on a CUDA device; its asynchronous errors are raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def networks_that_fit(context: RunContext, recipe: Recipe, sharing: int) -> int:
    """Return the number of networks that each of the ``sharing`` workers on a device can train at once, on that of the
    run's devices with the least free memory; at least 1."""
    devices = context.spec.devices or (context.spec.device,)
    budget = MAX_MEMORY_SHARE * min(free_bytes(torch.device(each)) for each in devices) / max(1, sharing)
    if context.device.type == "cpu":
        budget -= PROCESS_BYTES
    return max(1, int(budget // bytes_per_network(context, recipe)))


def peak_bytes() -> int:
    """Return the peak memory of this process.

    On Linux from VmHWM: ``ru_maxrss`` includes the peak of the parent process."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
