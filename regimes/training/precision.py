"""In which arithmetic a step is taken: float32, or bfloat16 where that is enough."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("float32", "bfloat16")


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a training step's forward passes.

    "bfloat16" is torch's autocast: convolutions and matrix products take bfloat16 operands; weights, gradients, sums,
    losses and the optimiser stay in float32. It pays where the processor multiplies bfloat16 natively (CUDA cards,
    CPUs with AVX512-BF16 or AMX). Results equal those of float32 within the noise between seeds, not bit for bit, so
    the precision is part of a run's numerics. Everything that is *measured* is measured in float32.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))
