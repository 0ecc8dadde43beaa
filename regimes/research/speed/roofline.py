"""Limits of the machine: measured matrix rate and bandwidth, and the FLOPs and bytes of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from regimes.research.speed.harness import Case
from regimes.research.speed.workloads import data_of, new_network
from regimes.training.precision import precision_context

SMALL_COUNT = 2048  # with fewer images a benchmark is a trial of itself


def measure(case: Case) -> dict[str, Any]:
    """Measure FLOP/s of matrix products in float32 and bfloat16, bytes/s of a copy, and a step's FLOPs and bytes."""
    device = torch.device(case.get("device", "cpu"))
    small = device.type == "cpu" or case["count"] < SMALL_COUNT
    inputs = data_of(case).train.inputs
    flops, moved = step(new_network(case, 0), inputs[: case["batch"]].to(device))
    return {
        "seconds": 1.0,
        "units": 1,
        **{f"flops_per_second_{name}": matrix_rate(device, name, small) for name in ("float32", "bfloat16")},
        "bytes_per_second": bandwidth(device, small),
        "images_per_epoch": len(inputs) // case["batch"] * case["batch"],
        "flops_per_image": flops / case["batch"],
        "bytes_per_image": moved / case["batch"],
    }


def matrix_rate(device: torch.device, precision: str, small: bool) -> float:
    """Measure the FLOP/s of a matrix product, a small one for CPUs."""
    size = 1024 if small else 8192
    a = torch.randn(size, size, device=device).to(getattr(torch, precision))
    return 2 * size**3 / _fastest(partial(torch.matmul, a, a), device)


def bandwidth(device: torch.device, small: bool) -> float:
    """Measure the bytes/s that a copy reads and writes, a small one for CPUs."""
    block = torch.empty(2**26 if small else 2**30, device=device)
    other = torch.empty_like(block)
    return 2 * block.nbytes / _fastest(lambda: other.copy_(block), device)


def step(model: nn.Module, inputs: Tensor, precision: str = "float32") -> tuple[int, int]:
    """Count the FLOPs of a training step and the bytes that its operations read and write, unfused."""
    targets = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        with precision_context(precision, inputs.device):
            outputs = model.train()(inputs)
        F.cross_entropy(outputs.float(), targets).backward()
    return flops.get_total_flops(), traffic.total


class _Traffic(TorchDispatchMode):
    """Add up the bytes of inputs and outputs of every operation that allocates memory."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inside = [each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        outside = [each for each in torch.utils._pytree.tree_leaves(out) if isinstance(each, Tensor)]
        known = {each.untyped_storage().data_ptr() for each in inside}
        if any(each.untyped_storage().data_ptr() not in known for each in outside):  # not a view
            self.total += sum(each.nbytes for each in (*inside, *outside))
        return out


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Minimum seconds over several runs."""
    found = []
    for _ in range(8):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])
