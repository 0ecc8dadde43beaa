"""XTrace: trace of a symmetric operator from few products, for decaying spectra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regimes.landscape.estimate import Estimate, student_factor
from regimes.landscape.hessian_operator import HessianOperator

BLOCK_SIZE = 2  # test vectors added at a time
INITIAL_VECTORS = 8
STDERR_FACTOR = 1.4  # leave-one-out estimates share vectors: their standard error was a quarter too small without it
MAX_BASIS_BYTES = 2**31  # memory for three bases


class XTrace:
    """XTrace estimator of the trace (Epperly, Tropp and Webber 2024, SIAM J. Matrix Anal. Appl.).

    For test vectors ``w_1 .. w_m``, let Q_i be an orthonormal basis of the ``H w_j``, j != i. Then

    ``t_i = tr(Q_i' H Q_i) + x' H x (n - m + 1) / |x|^2,  x = (1 - Q_i Q_i') w_i``

    is unbiased (w Gaussian, n coordinates): the part inside the basis is exact, only the rest is sampled. All m of
    these leave-one-out estimates share 2m products. The trace is their mean; its standard error is their standard
    deviation over sqrt(m), widened by `STDERR_FACTOR` and `student_factor`. Compared with Hutchinson's estimator, the
    error decreases faster than 1/sqrt(m) while the spectrum decays, as it does for trained networks.

    Bases grow in blocks, and no product is computed twice.

    Args:
        hessian: the operator.
        generator: CPU generator for the test vectors.
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
        """Add test vectors.

        When a product is inside the basis up to rounding, the basis spans the operator's whole range. Then ``rank`` is
        set to the number of columns before that product; those after it are noise.
        """
        tests = torch.stack([self.hessian.normal(self.generator) for _ in range(count)], dim=1)
        products = self.hessian.matmat(tests)
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
        self.images = torch.cat([self.images, self.hessian.matmat(fresh)], dim=1)
        diagonal = triangle.diagonal().abs()
        self.left = float(diagonal.min())
        within = (diagonal <= 30 * torch.finfo(tests.dtype).eps * diagonal.max()).nonzero()
        self.rank = int(within[0]) if len(within) else -1

    def estimate(self) -> Estimate:
        """Return the trace from all test vectors so far; ``samples`` counts the products."""
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
        return Estimate(mean.value, STDERR_FACTOR * mean.stderr * student_factor(count - 1), 2 * count, "nat")


def xtrace(
    hessian: HessianOperator, generator: torch.Generator, rel_stderr: float, most: int, offset: float = 0.0
) -> Estimate:
    """Estimate the trace by XTrace until ``stderr <= rel_stderr * abs(value + offset)`` twice in a row.

    The exact diagonal is computed instead if a few more test vectors would take as many products as there are
    coordinates. If the operator's rank is smaller than the number of test vectors, the trace is known up to rounding,
    and a bound of the rounding error outside the basis is returned as the standard error.

    Args:
        hessian: the operator.
        generator: CPU generator.
        rel_stderr: relative standard error to reach.
        most: largest number of products; at least ``2 INITIAL_VECTORS`` are made.
        offset: a known other part of the value, to which the tolerance is relative too.
    """
    most = max(2 * INITIAL_VECTORS, min(most, 2 * columns_that_fit(hessian.size)))
    trial, met = XTrace(hessian, generator), 0
    while True:
        if hessian.size <= 2 * (len(trial.triangle) + INITIAL_VECTORS):
            return exact_trace(hessian, 2 * len(trial.triangle))
        trial.grow(BLOCK_SIZE if len(trial.triangle) else INITIAL_VECTORS)
        count = 2 * len(trial.triangle)
        if trial.rank >= 0:
            basis, images = trial.basis[:, : trial.rank], trial.images[:, : trial.rank]
            return Estimate(float(_small(basis, images).trace()), hessian.size**0.5 * trial.left, count, "nat")
        found = trial.estimate()
        # Twice, because a single standard error may happen to be small.
        met = met + 1 if found.stderr <= rel_stderr * abs(found.value + offset) else 0
        if met == 2 or count + 2 * BLOCK_SIZE > most or not math.isfinite(found.value):
            return found


def columns_that_fit(size: int) -> int:
    """Return the number of test vectors of a size that fit into `MAX_BASIS_BYTES`."""
    return MAX_BASIS_BYTES // (3 * 8 * size)


def exact_trace(hessian: HessianOperator, before: int) -> Estimate:
    """Return the exact trace, from one product per coordinate; ``before`` is the number of products made earlier."""
    eye = torch.eye(hessian.size, device=hessian.device, dtype=hessian.dtype)
    return Estimate(float(hessian.matmat(eye).diagonal().double().sum()), 0.0, before + hessian.size, "nat")


def _small(one: Tensor, other: Tensor) -> Tensor:
    """Product of the transpose of a tall matrix with another, (m, size) by (size, k)."""
    return (one.T @ other).double().cpu()
