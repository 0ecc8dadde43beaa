"""Lanczos iteration: extreme eigenvalues and spectral density of a symmetric operator from few products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.landscape.estimate import Estimate
from regimes.landscape.hessian_operator import HessianOperator

CONSECUTIVE_HITS = 3  # steps in a row at which the bound has to hold; with 2, 1 in 10 was the second largest eigenvalue


@dataclass(frozen=True)
class LanczosState:
    """Result of a number of Lanczos steps.

    Attributes:
        values: Ritz values, ascending (steps,), float64.
        vectors: eigenvectors of the tridiagonal matrix (steps, steps), in columns.
        residual: norm of the last product's part outside the basis; times the last entry of an eigenvector, it is the
            residual of that Ritz value.
        product: the last Rayleigh quotient; not finite if a product of the operator is not.
    """

    values: Tensor
    vectors: Tensor
    residual: float
    product: float

    def bound(self, index: int) -> float:
        """Return an error bound of a Ritz value: its residual r, or ``r^2 / (gap - r)`` if its neighbours are at least
        ``gap`` > r away (Kato, Temple)."""
        residual = self.residual * abs(float(self.vectors[-1, index]))
        others = [abs(float(self.values[index] - value)) for i, value in enumerate(self.values) if i != index]
        gap = min(others, default=0.0)
        return min(residual, residual**2 / (gap - residual)) if gap > residual else residual


def lanczos(hessian: HessianOperator, vector: Tensor, max_steps: int) -> Iterator[LanczosState]:
    """Yield the result after each step from a starting vector (size,), with full reorthogonalisation.

    Ends after ``max_steps``, when the basis spans an invariant subspace, or at a product that is not finite.
    """
    basis = [vector / vector.norm()]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for _ in range(min(max_steps, hessian.size)):
        image = hessian @ basis[-1]
        diagonal.append(float(basis[-1] @ image))
        if not math.isfinite(diagonal[-1]):
            nothing = torch.full((len(diagonal),), math.nan, dtype=torch.float64)
            yield LanczosState(nothing, nothing.expand(len(diagonal), -1), math.nan, diagonal[-1])
            return
        known = torch.stack(basis)  # (k, size)
        for _ in range(2):  # once is not enough in float32
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if off_diagonal:
            edge = torch.tensor(off_diagonal, dtype=torch.float64)
            small = small + torch.diag(edge, 1) + torch.diag(edge, -1)
        values, vectors = torch.linalg.eigh(small)
        yield LanczosState(values, vectors, length, diagonal[-1])
        if length <= 1e-12 * float(values.abs().max()):
            return
        off_diagonal.append(length)
        basis.append(image / length)


def lanczos_top(
    hessian: HessianOperator, generator: torch.Generator, tolerance: float, max_steps: int, count: int = 1
) -> list[Estimate]:
    """Return the ``count`` largest Ritz values, with error bounds in place of standard errors; see `hessian_top`.

    Iteration stops when all bounds are below ``tolerance`` (relative) three times in a row: a starting vector with a
    small component along the largest eigenvector finds the second largest first.
    """
    met = 0
    found: list[Estimate] = []
    for steps, ritz in enumerate(lanczos(hessian, hessian.normal(generator), max_steps), start=1):
        places = range(steps - 1, max(-1, steps - 1 - count), -1)
        found = [Estimate(float(ritz.values[i]), ritz.bound(i), steps, "nat") for i in places]
        sure = all(each.stderr <= tolerance * abs(each.value) for each in found)
        met = met + 1 if sure and len(found) == min(count, hessian.size) else 0
        if met == CONSECUTIVE_HITS:
            break
    return found
