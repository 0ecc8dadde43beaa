"""XTrace: the trace of a symmetric operator from few products, where its spectrum decays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regimes.landscape.estimate import Estimate, student
from regimes.landscape.hessian_operator import HessianOperator

BLOCK = 2  # test vectors that are added at a time
FIRST = 8  # test vectors to begin with
WIDER = 1.4  # the leave-one-out estimates share vectors: their plain spread was a quarter too small
BYTES = 2**31  # that three bases of long vectors may take


class XTrace:
    """Leave-one-out trace estimates that share all their products (Epperly, Tropp, Webber 2024, SIAM J. Matrix Anal.).

    For test vectors ``w_1 .. w_m`` let Q_i be an orthonormal basis of the ``H w_j``, j != i. Then

    ``t_i = tr(Q_i' H Q_i) + x' H x (n - m + 1) / |x|^2,  x = (1 - Q_i Q_i') w_i``

    is unbiased (w Gaussian, n coordinates): what the basis catches is exact, only the rest is sampled. All m of them
    cost 2m products; the trace is their mean, its standard error their spread over sqrt(m). Against Hutchinson's m
    probes the error falls faster than 1/sqrt(m) as long as the spectrum decays, as that of a trained network does.

    Bases grow in blocks, and no product is made twice.
    """

    def __init__(self, hessian: HessianOperator, generator: torch.Generator) -> None:
        self.hessian = hessian
        self.generator = generator
        empty = torch.zeros(hessian.size, 0, device=hessian.device, dtype=hessian.dtype)
        self.tests, self.basis, self.images = empty, empty, empty  # W, Q, H Q: (size, m)
        self.triangle = torch.zeros(0, 0, dtype=torch.float64)  # R of the products H W = Q R
        self.energies = torch.zeros(0, dtype=torch.float64)  # w_i' H w_i
        self.left, self.rank = math.inf, -1  # length of the shortest product outside the basis; see `grow`

    def grow(self, count: int) -> None:
        """Add test vectors. Once a product does not leave the basis but for rounding, the basis holds the whole range;
        its columns before that one are the operator's ``rank``, those after it are noise."""
        tests = torch.stack([self.hessian.normal(self.generator) for _ in range(count)], dim=1)
        products = self.hessian.times(tests)
        self.energies = torch.cat([self.energies, (tests * products).sum(dim=0).double().cpu()])
        known = len(self.triangle)
        edge = torch.zeros(known, count, device=tests.device, dtype=tests.dtype)
        for _ in range(2):  # once is not enough in float32
            along = self.basis.T @ products
            products, edge = products - self.basis @ along, edge + along
        fresh, corner = torch.linalg.qr(products)
        triangle = torch.zeros(known + count, known + count, dtype=torch.float64)
        triangle[:known, :known], triangle[:known, known:] = self.triangle, edge.double().cpu()
        triangle[known:, known:] = corner.double().cpu()
        self.triangle = triangle
        self.tests = torch.cat([self.tests, tests], dim=1)
        self.basis = torch.cat([self.basis, fresh], dim=1)
        self.images = torch.cat([self.images, self.hessian.times(fresh)], dim=1)
        diagonal = triangle.diagonal().abs()
        self.left = float(diagonal.min())
        within = (diagonal <= 30 * torch.finfo(tests.dtype).eps * diagonal.max()).nonzero()
        self.rank = int(within[0]) if len(within) else -1

    def estimate(self) -> Estimate:
        """The trace from all test vectors so far; its samples are the products made."""
        inner = _small(self.basis, self.images)  # Q' H Q
        basis, cross = _small(self.basis, self.tests), _small(self.images, self.tests)  # Q' W, Q' H W
        left_out = torch.linalg.solve_triangular(
            self.triangle.T, torch.eye(len(inner), dtype=torch.float64), upper=False
        )
        left_out = left_out / left_out.norm(dim=0)  # column i: the direction in Q that only w_i spans
        count, size = len(inner), self.hessian.size
        caught = inner.trace() - (left_out * (inner @ left_out)).sum(dim=0)
        inside = basis - left_out * (left_out * basis).sum(dim=0)  # Q_i Q_i' w_i, in Q
        outside = self.energies - 2 * (inside * cross).sum(dim=0) + (inside * (inner @ inside)).sum(dim=0)
        lengths = self.tests.double().square().sum(dim=0).cpu() - inside.square().sum(dim=0)
        each = caught + outside * (size - count + 1) / lengths
        mean = Estimate.mean(each.tolist(), "nat")
        return Estimate(mean.value, WIDER * mean.stderr * student(count - 1), 2 * count, "nat")


def xtrace(
    hessian: HessianOperator, generator: torch.Generator, rel_stderr: float, most: int, beside: float = 0.0
) -> Estimate:
    """Grow test vectors until ``stderr <= rel_stderr * abs(value + beside)`` twice in a row, or ``most`` products.

    Where a few more test vectors would take as many products as there are coordinates, the diagonal is taken instead
    and the trace is exact. At least ``2 FIRST`` products are made.
    Where the operator's rank is smaller than the number of test vectors, nothing is left to sample; a bound of what
    rounding leaves outside the basis then stands as the standard error.
    """
    most = max(2 * FIRST, min(most, 2 * columns_that_fit(hessian.size)))
    trial, met = XTrace(hessian, generator), 0
    while True:
        if hessian.size <= 2 * (len(trial.triangle) + FIRST):
            return exact_trace(hessian, 2 * len(trial.triangle))
        trial.grow(BLOCK if len(trial.triangle) else FIRST)
        count = 2 * len(trial.triangle)
        if trial.rank >= 0:
            basis, images = trial.basis[:, : trial.rank], trial.images[:, : trial.rank]
            return Estimate(float(_small(basis, images).trace()), hessian.size**0.5 * trial.left, count, "nat")
        found = trial.estimate()
        # Twice: the first time may be a standard error that happens to be small.
        met = met + 1 if found.stderr <= rel_stderr * abs(found.value + beside) else 0
        if met == 2 or count + 2 * BLOCK > most or not math.isfinite(found.value):
            return found


def columns_that_fit(size: int) -> int:
    """How many test vectors of a size the memory bears."""
    return BYTES // (3 * 8 * size)


def exact_trace(hessian: HessianOperator, before: int) -> Estimate:
    """The sum of the diagonal, coordinate by coordinate; ``before`` products were made already."""
    eye = torch.eye(hessian.size, device=hessian.device, dtype=hessian.dtype)
    return Estimate(float(hessian.times(eye).diagonal().double().sum()), 0.0, before + hessian.size, "nat")


def _small(one: Tensor, other: Tensor) -> Tensor:
    """The product of two tall matrices, (m, size) by (size, k)."""
    return (one.T @ other).double().cpu()
