"""Precision of training steps: float32 or bfloat16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("float32", "bfloat16")


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context manager for the forward passes of training steps.

    "bfloat16" is torch's autocast: convolutions and matrix products take bfloat16 operands; weights, gradients, sums,
    losses and the optimiser stay in float32. It is faster on processors with native bfloat16 (CUDA GPUs, CPUs with
    AVX512-BF16 or AMX). Results equal those of float32 within the noise between seeds, not bit for bit, so the
    precision is part of a run's numerics. Measurements are always in float32.

    Args:
        precision: a name in `PRECISIONS`.
        device: device of the model.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))
