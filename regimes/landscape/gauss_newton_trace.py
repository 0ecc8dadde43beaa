"""The trace of a Hessian taken apart: random draws of one part, probes of the other, until both are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regimes.landscape.estimate import Estimate, student
from regimes.landscape.gauss_newton_split import GaussNewtonSplit
from regimes.landscape.hessian_operator import HessianOperator
from regimes.landscape.xtrace import columns_that_fit, exact_trace, xtrace

VALUES = 32  # draws of single inputs that a standard error needs
SHARE = 0.7  # of the error that either part may have
MANY = 48  # probes of the rest: XTrace takes fewer products then, and so many coordinates are taken one by one
PROBES = 6  # of the rest, that a standard error needs


def split_trace(split: GaussNewtonSplit, generator: torch.Generator, rel_stderr: float, most: int) -> Estimate:
    """tr G + tr R until ``stderr <= rel_stderr * abs(value)`` twice in a row, or ``most`` draws and products are made.

    Where R's diagonal is zero that is Gauss-Newton alone. Elsewhere R is probed too: by Hutchinson, whose standard
    error is widened by Student's factor as the probes are few; by XTrace where it would take many. Whichever part is
    less certain is worked on next.
    """
    gauss, flat = GaussNewtonTrace(split, generator, most), split.flat()
    if flat or split.rest.size <= MANY:
        rest = Estimate(0.0, 0.0, 0) if flat else exact_trace(split.rest, 0)
        gauss.reach(rel_stderr, beside=rest.value)
        return _sum(gauss.estimate(), rest)
    probes: list[float] = []
    met = 0
    while True:
        while len(probes) < PROBES:
            probes.append(_probe(split.rest, generator))
        first, second = gauss.estimate(), Estimate.mean_of_few(probes, "nat")
        found = _sum(first, second)
        goal = rel_stderr * abs(found.value)
        met = met + 1 if found.stderr <= goal else 0
        if met == 2 or found.samples >= most or not math.isfinite(found.stderr):
            return found
        share = SHARE * goal
        if first.stderr > second.stderr:
            gauss.draw_or_finish(share)
        elif len(probes) * second.stderr**2 > MANY * share**2 and columns_that_fit(split.rest.size) >= MANY:
            rest = xtrace(split.rest, generator, SHARE * rel_stderr, most, beside=first.value)
            gauss.reach(SHARE * rel_stderr, beside=rest.value)
            return _sum(gauss.estimate(), rest)
        else:
            probes.append(_probe(split.rest, generator))


class GaussNewtonTrace:
    """tr G as known so far: from random draws, until the exact trace costs less than the draws still needed."""

    def __init__(self, split: GaussNewtonSplit, generator: torch.Generator, most: int) -> None:
        self.split, self.generator, self.most = split, generator, most
        self.whole: Tensor | None = None
        self.draws: list[Tensor] = []
        first = -(-VALUES // len(split.inputs))
        if first >= split.columns:
            self.whole = split.exact().sum(dim=1)
        else:
            self.draws = [split.draw(generator).sum(dim=1) for _ in range(first)]

    def estimate(self) -> Estimate:
        """Only draws vary, the inputs are given; of one draw alone the spread over inputs is an upper bound.

        The error is widened by Student's factor: where a few inputs have most of the trace, only those tell it
        (degrees of freedom after Satterthwaite).
        """
        if self.whole is not None:
            return Estimate(float(self.whole.mean()), 0.0, len(self.draws) + self.split.columns, "nat")
        draws = torch.stack(self.draws)  # (k, n)
        count, inputs = draws.shape
        if count == 1:
            return Estimate(float(draws.mean()), float(draws[0].std()) / inputs**0.5, 1, "nat")
        stderr = float(draws.var(dim=0).mean() / (inputs * count)) ** 0.5
        return Estimate(float(draws.mean()), stderr * student(self.freedom), count, "nat")

    @property
    def freedom(self) -> float:
        """How many independent squares the standard error rests on; an upper bound needs none."""
        if self.whole is not None or len(self.draws) == 1:
            return math.inf
        variance = torch.stack(self.draws).var(dim=0)
        share = float(variance.sum() ** 2 / variance.square().sum().clamp(min=1e-300))
        return max(1.0, (len(self.draws) + 1) * share)

    def reach(self, rel_stderr: float, beside: float) -> None:
        """Draw until ``stderr <= rel_stderr * abs(value + beside)`` twice in a row; or take the exact trace."""
        met = 0
        while self.whole is None and len(self.draws) < self.most:
            now = self.estimate()
            goal = rel_stderr * abs(now.value + beside)
            met = met + 1 if now.stderr <= goal else 0
            if met == 2 or (met and self.freedom >= MANY) or not math.isfinite(now.stderr):
                return
            self.draw_or_finish(goal)

    def draw_or_finish(self, goal: float) -> None:
        """One more draw, or the exact trace if the draws that ``goal`` needs would cost more."""
        if self.whole is not None:
            return
        needed = len(self.draws) * (self.estimate().stderr / goal) ** 2 if goal > 0 else math.inf
        bound = len(self.draws) == 1 and goal > 0  # nothing to reckon with yet
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
