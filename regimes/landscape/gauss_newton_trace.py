"""Trace of the Hessian from its Gauss-Newton decomposition: random draws of one part, probes of the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regimes.landscape.estimate import Estimate, student_factor
from regimes.landscape.gauss_newton_split import GaussNewtonSplit
from regimes.landscape.hessian_operator import HessianOperator
from regimes.landscape.xtrace import columns_that_fit, exact_trace, xtrace

MIN_INPUT_DRAWS = 32  # per-input draws needed for a standard error
ERROR_SHARE = 0.7  # largest share of the allowed error per part
MANY_PROBES = 48  # above this, XTrace needs fewer products; up to as many coordinates, the diagonal is computed exactly
MIN_PROBES = 6  # probes of the rest needed for a standard error


def split_trace(split: GaussNewtonSplit, generator: torch.Generator, rel_stderr: float, most: int) -> Estimate:
    """Estimate tr G + tr R until ``stderr <= rel_stderr * abs(value)`` twice in a row.

    If the diagonal of R is zero, this is tr G alone. Otherwise R is probed too: by Hutchinson's estimator, with its
    standard error widened by `student_factor` because the probes are few, or by XTrace if many would be needed. The
    less certain part is refined next.

    Args:
        split: the decomposition.
        generator: CPU generator.
        rel_stderr: relative standard error to reach.
        most: largest total number of draws and Hessian-vector products.
    """
    gauss, flat = GaussNewtonTrace(split, generator, most), split.rest_has_zero_diagonal()
    if flat or split.rest.size <= MANY_PROBES:
        rest = Estimate(0.0, 0.0, 0) if flat else exact_trace(split.rest, 0)
        gauss.refine(rel_stderr, offset=rest.value)
        return _sum(gauss.estimate(), rest)
    probes: list[float] = []
    met = 0
    while True:
        while len(probes) < MIN_PROBES:
            probes.append(_probe(split.rest, generator))
        first, second = gauss.estimate(), Estimate.mean_of_few(probes, "nat")
        found = _sum(first, second)
        goal = rel_stderr * abs(found.value)
        met = met + 1 if found.stderr <= goal else 0
        if met == 2 or found.samples >= most or not math.isfinite(found.stderr):
            return found
        share = ERROR_SHARE * goal
        if first.stderr > second.stderr:
            gauss.draw_or_finish(share)
        elif (
            len(probes) * second.stderr**2 > MANY_PROBES * share**2 and columns_that_fit(split.rest.size) >= MANY_PROBES
        ):
            rest = xtrace(split.rest, generator, ERROR_SHARE * rel_stderr, most, offset=first.value)
            gauss.refine(ERROR_SHARE * rel_stderr, offset=rest.value)
            return _sum(gauss.estimate(), rest)
        else:
            probes.append(_probe(split.rest, generator))


class GaussNewtonTrace:
    """Running estimate of tr G from random draws; switches to the exact trace once that costs less.

    Args:
        split: the decomposition.
        generator: CPU generator.
        most: largest number of draws.
    """

    def __init__(self, split: GaussNewtonSplit, generator: torch.Generator, most: int) -> None:
        self.split, self.generator, self.most = split, generator, most
        self.whole: Tensor | None = None
        self.draws: list[Tensor] = []
        first = -(-MIN_INPUT_DRAWS // len(split.inputs))
        if first >= split.columns:
            self.whole = split.exact().sum(dim=1)
        else:
            self.draws = [split.draw(generator).sum(dim=1) for _ in range(first)]

    def estimate(self) -> Estimate:
        """Return the current estimate.

        The standard error is that of the draws; the inputs count as fixed. With a single draw, the spread over inputs
        serves as an upper bound. The standard error is widened by `student_factor` with Satterthwaite's degrees of
        freedom, because a few inputs may carry most of the trace.
        """
        if self.whole is not None:
            return Estimate(float(self.whole.mean()), 0.0, len(self.draws) + self.split.columns, "nat")
        draws = torch.stack(self.draws)  # (k, n)
        count, inputs = draws.shape
        if count == 1:
            return Estimate(float(draws.mean()), float(draws[0].std()) / inputs**0.5, 1, "nat")
        stderr = float(draws.var(dim=0).mean() / (inputs * count)) ** 0.5
        return Estimate(float(draws.mean()), stderr * student_factor(self.degrees_of_freedom), count, "nat")

    @property
    def degrees_of_freedom(self) -> float:
        """Satterthwaite's degrees of freedom of the standard error; infinite if it is exact or an upper bound."""
        if self.whole is not None or len(self.draws) == 1:
            return math.inf
        variance = torch.stack(self.draws).var(dim=0)
        share = float(variance.sum() ** 2 / variance.square().sum().clamp(min=1e-300))
        return max(1.0, (len(self.draws) + 1) * share)

    def refine(self, rel_stderr: float, offset: float) -> None:
        """Draw until ``stderr <= rel_stderr * abs(value + offset)`` twice in a row, or switch to the exact trace."""
        met = 0
        while self.whole is None and len(self.draws) < self.most:
            now = self.estimate()
            goal = rel_stderr * abs(now.value + offset)
            met = met + 1 if now.stderr <= goal else 0
            if met == 2 or (met and self.degrees_of_freedom >= MANY_PROBES) or not math.isfinite(now.stderr):
                return
            self.draw_or_finish(goal)

    def draw_or_finish(self, goal: float) -> None:
        """Add a draw, or compute the exact trace if reaching the standard error ``goal`` by draws would cost more."""
        if self.whole is not None:
            return
        needed = len(self.draws) * (self.estimate().stderr / goal) ** 2 if goal > 0 else math.inf
        bound = len(self.draws) == 1 and goal > 0  # no spread over draws yet
        if not bound and needed - len(self.draws) >= self.split.columns:
            self.whole = self.split.exact().sum(dim=1)
        else:
            self.draws.append(self.split.draw(self.generator).sum(dim=1))


def _sum(one: Estimate, other: Estimate) -> Estimate:
    stderr = math.hypot(one.stderr, other.stderr)
    return Estimate(one.value + other.value, stderr, one.samples + other.samples, "nat")


def _probe(rest: HessianOperator, generator: torch.Generator) -> float:
    vector = rest.rademacher(generator)
    return float(vector @ (rest @ vector))
