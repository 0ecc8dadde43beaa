"""The Hessian's spectrum: its largest eigenvalues, and how all of them are spread (stochastic Lanczos quadrature)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, Strict
from torch import nn

from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.hessian_operator import AnyMask, HessianOperator
from regimes.landscape.inputs import Data, pair
from regimes.landscape.lanczos import lanczos, lanczos_top
from regimes.landscape.metric import Curve, Images, LossFn, Metric, MetricValues, Probe, Trained, Variable, subset, used
from regimes.landscape.trace_estimators import UNIT

# Where the spectrum's distribution is kept in a record: zero, and ten values a decade to either side.
GRID = tuple(sorted({0.0, *(sign * round(10 ** (each / 10), 8) for each in range(-40, 51) for sign in (-1, 1))}))


@dataclass(frozen=True)
class Spectrum:
    """A Hessian's eigenvalue distribution, as weighted points of each probe.

    Attributes:
        nodes: Ritz values of each probe, ascending.
        weights: their weights, adding up to 1 in each probe.
        size: number of coordinates.
    """

    nodes: tuple[NDArray[np.float64], ...]
    weights: tuple[NDArray[np.float64], ...]
    size: int

    def moment(self, power: int) -> Estimate:
        """Mean of the eigenvalues to a power; for power 1, times `size`, the trace."""
        return Estimate.mean_of_few([float(w @ x**power) for x, w in zip(self.nodes, self.weights, strict=True)])

    def below(self, value: float) -> Estimate:
        """Fraction of the eigenvalues that are at most ``value``.

        A quadrature knows it no better than by the weights of the points to either side of ``value`` (Chebyshev,
        Markov, Stieltjes), which are large where eigenvalues crowd, as about zero: they are in the standard error.
        """
        shares, gaps = [], []
        for x, w in zip(self.nodes, self.weights, strict=True):
            place = int((x <= value).sum())
            shares.append(float(w[:place].sum()) if np.isfinite(x).all() else math.nan)
            gaps.append(max([0.0, *w[max(0, place - 1) : place + 1].tolist()]))
        mean = Estimate.mean_of_few(shares)
        exact = all(len(x) == self.size for x in self.nodes)  # every eigenvalue is a point
        return Estimate(mean.value, math.hypot(mean.stderr, 0.0 if exact else float(np.mean(gaps)) / 2), mean.samples)

    def density(self, at: ArrayLike, width: float) -> NDArray[np.float64]:
        """Density of the eigenvalues at some values: the points smeared by Gaussians of a standard deviation."""
        found = [
            w @ np.exp(-0.5 * ((np.asarray(at)[None] - x[:, None]) / width) ** 2) / (width * math.sqrt(2 * math.pi))
            for x, w in zip(self.nodes, self.weights, strict=True)
        ]
        return np.mean(found, axis=0)


def hessian_spectrum(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    generator: torch.Generator | None = None,
    *,
    probes: int = 8,
    steps: int = 40,
    chunk: int = 0,
) -> Spectrum:
    """Distribution of the eigenvalues of the Hessian of the mean loss, on the mask's support, in eval mode.

    Stochastic Lanczos quadrature (Ghorbani et al. 2019, arXiv 1901.10159): from each random Gaussian vector v so many
    steps of Lanczos; the Ritz values, weighted by the squares of their vectors' first entries, are the quadrature of
    the distribution as v sees it, exact for polynomials up to degree ``2 steps - 1``. The probes' spread gives the
    standard errors.

    Args:
        model, loss_fn, data, mask, generator, chunk: as in `regimes.hessian_trace`.
        probes: random vectors, at least 2.
        steps: of Lanczos for each; one Hessian-vector product a step.

    Raises:
        UserError: too few probes or steps.
    """
    if probes < 2 or steps < 1:
        raise UserError(f"probes = {probes}, steps = {steps}: allowed: at least 2 and 1")
    generator = generator or torch.Generator().manual_seed(0)
    hessian = HessianOperator(model, loss_fn, pair(data, model), mask, chunk)
    nodes, weights = [], []
    for _ in range(probes):
        *_, last = lanczos(hessian, hessian.normal(generator), steps)
        nodes.append(last.values.numpy())
        weights.append(last.vectors[0].square().numpy())
    return Spectrum(tuple(nodes), tuple(weights), hessian.size)


def hessian_eigenvalues(
    model: nn.Module,
    loss_fn: LossFn,
    data: Data,
    mask: AnyMask = None,
    generator: torch.Generator | None = None,
    *,
    count: int = 5,
    tolerance: float = 1e-3,
    max_steps: int = 100,
    chunk: int = 0,
) -> list[Estimate]:
    """The largest eigenvalues of the Hessian of the mean loss, largest first, on the mask's support; see `hessian_top`.

    Lanczos from one vector sees each distinct eigenvalue once, whatever its multiplicity.

    Args:
        count: how many.
        tolerance, max_steps: relative error to stop at; the most products.
        model, loss_fn, data, mask, generator, chunk: as in `regimes.hessian_trace`.
    """
    if count < 1 or max_steps < count:
        raise UserError(f"count = {count}, max_steps = {max_steps}: at least 1, and no fewer steps than values")
    generator = generator or torch.Generator().manual_seed(0)
    hessian = HessianOperator(model, loss_fn, pair(data, model), mask, chunk)
    found = lanczos_top(hessian, generator, tolerance, max_steps, count)
    return [each.warned(f"Hessian eigenvalue {number}") for number, each in enumerate(found, start=1)]


@dataclass(frozen=True)
class SpectrumOptions:
    """Options of the metric "spectrum": training images (0: all), probes, steps of Lanczos for each."""

    images: Images = 256
    probes: Annotated[int, Strict(), Field(ge=2)] = 4
    steps: Annotated[int, Strict(), Field(ge=1)] = 30


def _measure(subjects: Sequence[Trained], probe: Probe, options: SpectrumOptions) -> MetricValues:
    (subject,) = subjects
    data = subset(probe.data.train, options.images)
    found = hessian_spectrum(
        subject.model,
        probe.loss_fn,
        data,
        subject.mask,
        probe.generator,
        probes=options.probes,
        steps=options.steps,
    )
    below = [found.below(each).value for each in GRID]
    return {
        "hessian_mean": found.moment(1),
        "hessian_square": found.moment(2),
        "hessian_below": Curve(below, "eigenvalue", GRID),
    }


SPECTRUM = Metric(
    name="spectrum",
    subject="model",
    options=SpectrumOptions,
    table="spectrum",
    variables={
        "hessian_mean": Variable(UNIT, "mean Hessian eigenvalue on the mask's support (training loss, eval mode)"),
        "hessian_square": Variable("nat^2", "mean squared Hessian eigenvalue on the mask's support"),
        "hessian_below": Variable("1", "share of Hessian eigenvalues up to a value (blurred where they crowd)"),
    },
    measure=_measure,
    work=lambda options, images: options.probes * options.steps * 6 * used(options.images, images),
    graph=lambda options, images: (used(options.images, images), 2 * options.steps),
)
