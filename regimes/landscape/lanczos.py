"""Lanczos: ends and density of a symmetric operator's spectrum from few products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.landscape.estimate import Estimate
from regimes.landscape.hessian_operator import HessianOperator

TIMES = 3  # in a row that a bound has to hold before it is believed; with two, one value in ten was the second largest


@dataclass(frozen=True)
class Ritz:
    """What so many steps of Lanczos know.

    Attributes:
        values: Ritz values, ascending (steps,), float64.
        vectors: eigenvectors of the tridiagonal matrix (steps, steps), in columns.
        residual: length of what the basis does not hold; times the last entry of a vector, that Ritz value's residual.
        product: the last Rayleigh quotient; not finite where the operator is not.
    """

    values: Tensor
    vectors: Tensor
    residual: float
    product: float

    def bound(self, place: int) -> float:
        """How far a Ritz value may be from an eigenvalue: its residual r, or ``r^2 / (gap - r)`` where the neighbours
        are a gap away (Kato, Temple)."""
        residual = self.residual * abs(float(self.vectors[-1, place]))
        others = [abs(float(self.values[place] - each)) for i, each in enumerate(self.values) if i != place]
        gap = min(others, default=0.0)
        return min(residual, residual**2 / (gap - residual)) if gap > residual else residual


def lanczos(hessian: HessianOperator, vector: Tensor, max_steps: int) -> Iterator[Ritz]:
    """Yield what is known after each step from a starting vector (size,), with full reorthogonalisation.

    Ends after ``max_steps``, where the basis spans all that the vector can reach, or at a product that is not finite.
    """
    basis = [vector / vector.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(max_steps, hessian.size)):
        image = hessian @ basis[-1]
        diagonal.append(float(basis[-1] @ image))
        if not math.isfinite(diagonal[-1]):
            nothing = torch.full((len(diagonal),), math.nan, dtype=torch.float64)
            yield Ritz(nothing, nothing.expand(len(diagonal), -1), math.nan, diagonal[-1])
            return
        known = torch.stack(basis)  # (k, size)
        for _ in range(2):  # once is not enough in float32
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            edge = torch.tensor(beside, dtype=torch.float64)
            small = small + torch.diag(edge, 1) + torch.diag(edge, -1)
        values, vectors = torch.linalg.eigh(small)
        yield Ritz(values, vectors, length, diagonal[-1])
        if length <= 1e-12 * float(values.abs().max()):
            return
        beside.append(length)
        basis.append(image / length)


def lanczos_top(
    hessian: HessianOperator, generator: torch.Generator, tolerance: float, max_steps: int, count: int = 1
) -> list[Estimate]:
    """Run Lanczos until the ``count`` largest Ritz values are known to ``tolerance``, three times in a row: a starting
    vector with little of the largest eigenvector in it finds the second first; see `hessian_top`."""
    met = 0
    found: list[Estimate] = []
    for steps, ritz in enumerate(lanczos(hessian, hessian.normal(generator), max_steps), start=1):
        places = range(steps - 1, max(-1, steps - 1 - count), -1)
        found = [Estimate(float(ritz.values[i]), ritz.bound(i), steps, "nat") for i in places]
        sure = all(each.stderr <= tolerance * abs(each.value) for each in found)
        met = met + 1 if sure and len(found) == min(count, hessian.size) else 0
        if met == TIMES:
            break
    return found
