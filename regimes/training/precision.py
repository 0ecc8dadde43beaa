"""Precision of training steps: float32 or bfloat16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRECISIONS = ("float32", "bfloat16")
# Torch's operators that multiply matrices or convolve; besides these, every fused attention.
PRODUCTS = (
    *("mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "_trilinear", "convolution"),
    *("mkldnn_rnn_layer", "_cudnn_rnn"),
)


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context manager for the forward passes of training steps.

    "bfloat16" is torch's autocast: convolutions and matrix products take bfloat16 operands, in the backward pass too;
    weights, gradients, sums, losses and the optimiser stay in float32. It is faster on processors with native bfloat16
    (CUDA GPUs, CPUs with AVX512-BF16 or AMX). Results equal those of float32 within the noise between seeds, not bit
    for bit, so the precision is part of a run's numerics. Measurements are always in float32. In either precision,
    Muon orthogonalises its updates in bfloat16, as torch does.

    Autocast acts within ``vmap`` on a part of the operations only, so the engine "stacked" refuses bfloat16.

    Args:
        precision: a name in `PRECISIONS`.
        device: device of the model.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


class ProductDtypes(TorchDispatchMode):
    """Context manager that notes the dtype of every matrix product and convolution of a forward pass.

    Attributes:
        found: (operator, dtype of its first operand) of each, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in PRODUCTS or name.startswith("_scaled_dot_product"):
            self.found.append((name, next(each.dtype for each in tree_leaves(args) if isinstance(each, Tensor))))
        return func(*args, **(kwargs or {}))
