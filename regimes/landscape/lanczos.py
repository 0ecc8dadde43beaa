"""Lanczos: the top of a symmetric operator's spectrum from few products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regimes.landscape.estimate import Estimate
from regimes.landscape.operator import HessianOperator


def lanczos_top(hessian: HessianOperator, generator: torch.Generator, tolerance: float, max_steps: int) -> Estimate:
    """Run Lanczos on an operator until the largest Ritz value is known to ``tolerance``; see `hessian_top`."""
    vector = hessian.normal(generator)
    basis = [vector / vector.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    value, bound, met = math.nan, math.nan, 0
    for step in range(min(max_steps, hessian.size)):
        image = hessian @ basis[-1]
        diagonal.append(float(basis[-1] @ image))
        if not math.isfinite(diagonal[-1]):
            return Estimate(math.nan, math.nan, step + 1, "nat")
        known = torch.stack(basis)  # (k, size)
        for _ in range(2):  # once is not enough in float32
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            edge = torch.tensor(beside, dtype=torch.float64)
            small = small + torch.diag(edge, 1) + torch.diag(edge, -1)
        values, vectors = torch.linalg.eigh(small)
        value, bound = float(values[-1]), _bound(values, length * abs(float(vectors[-1, -1])))
        met = met + 1 if bound <= tolerance * abs(value) else 0
        if met == 2 or length <= 1e-12 * float(values.abs().max()):
            break
        beside.append(length)
        basis.append(image / length)
    return Estimate(value, bound, len(diagonal), "nat")


def _bound(values: Tensor, residual: float) -> float:
    """How far the largest Ritz value may be from an eigenvalue."""
    gap = float(values[-1] - values[-2]) if len(values) > 1 else 0.0
    return min(residual, residual**2 / (gap - residual)) if gap > residual else residual
