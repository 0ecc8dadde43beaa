"""Spectrum of the Hessian: its largest eigenvalues, and its spectral density by stochastic Lanczos quadrature."""

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
from regimes.landscape.metric import (
    Curve,
    Images,
    LossFn,
    Metric,
    MetricValues,
    Probe,
    Trained,
    Variable,
    image_count,
    subset,
)
from regimes.landscape.trace_estimators import CURVATURE_UNIT

# Eigenvalues at which a record stores the cumulative distribution: zero, and ten per decade on either side.
EIGENVALUE_GRID = tuple(
    sorted({0.0, *(sign * round(10 ** (each / 10), 8) for each in range(-40, 51) for sign in (-1, 1))})
)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalue distribution of a Hessian, as one quadrature rule per probe.

    Attributes:
        nodes: Ritz values of each probe, ascending.
        weights: weights of the nodes, adding up to 1 for each probe.
        size: number of coordinates.
    """

    nodes: tuple[NDArray[np.float64], ...]
    weights: tuple[NDArray[np.float64], ...]
    size: int

    def moment(self, power: int) -> Estimate:
        """Return the mean of a power of the eigenvalues; ``moment(1)`` times `size` is the trace."""
        return Estimate.mean_of_few([float(w @ x**power) for x, w in zip(self.nodes, self.weights, strict=True)])

    def below(self, value: float) -> Estimate:
        """Return the fraction of the eigenvalues that are at most ``value``.

        A quadrature determines it only up to the weights of the nodes next to ``value`` (Chebyshev, Markov, Stieltjes),
        which are large where eigenvalues are dense, e.g. around zero; the standard error includes them.
        """
        shares, gaps = [], []
        for x, w in zip(self.nodes, self.weights, strict=True):
            place = int((x <= value).sum())
            shares.append(float(w[:place].sum()) if np.isfinite(x).all() else math.nan)
            gaps.append(max([0.0, *w[max(0, place - 1) : place + 1].tolist()]))
        mean = Estimate.mean_of_few(shares)
        exact = all(len(x) == self.size for x in self.nodes)  # every eigenvalue is a node
        return Estimate(mean.value, math.hypot(mean.stderr, 0.0 if exact else float(np.mean(gaps)) / 2), mean.samples)

    def density(self, at: ArrayLike, width: float) -> NDArray[np.float64]:
        """Return the spectral density at the given values, smoothed by Gaussians of standard deviation ``width``."""
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
    """Return the eigenvalue distribution of the Hessian of the mean loss, on the mask's support, in eval mode.

    Stochastic Lanczos quadrature (Ghorbani et al. 2019, arXiv 1901.10159): Lanczos is run from each of several random
    Gaussian vectors. The Ritz values, weighted by the squared first entries of their eigenvectors, are a quadrature of
    the distribution weighted by that vector, exact for polynomials up to degree ``2 steps - 1``. Standard errors come
    from the variation between probes.

    Args:
        model, loss_fn, data, mask, generator, chunk: as in `regimes.hessian_trace`.
        probes: number of random vectors, at least 2.
        steps: number of Lanczos steps per vector, one Hessian-vector product each.

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
    """Return the largest eigenvalues of the Hessian of the mean loss, in descending order, on the mask's support.

    As in `hessian_top`, ``stderr`` holds error bounds. Lanczos from one vector finds each distinct eigenvalue once,
    whatever its multiplicity.

    Args:
        model, loss_fn, data, mask, generator, chunk: as in `regimes.hessian_trace`.
        count: number of eigenvalues.
        tolerance: relative error bound to reach.
        max_steps: largest number of Hessian-vector products, at least ``count``.

    Raises:
        UserError: count or max_steps out of range.
    """
    if count < 1 or max_steps < count:
        raise UserError(
            f"count = {count}, max_steps = {max_steps}: allowed: count at least 1, max_steps at least count"
        )
    generator = generator or torch.Generator().manual_seed(0)
    hessian = HessianOperator(model, loss_fn, pair(data, model), mask, chunk)
    found = lanczos_top(hessian, generator, tolerance, max_steps, count)
    return [each.warned(f"Hessian eigenvalue {number}") for number, each in enumerate(found, start=1)]


@dataclass(frozen=True)
class SpectrumOptions:
    """Options of the metric "spectrum".

    Attributes:
        images: number of training images used (0: all).
        probes: number of random vectors.
        steps: number of Lanczos steps per vector.
    """

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
    below = [found.below(each).value for each in EIGENVALUE_GRID]
    return {
        "hessian_mean": found.moment(1),
        "hessian_square": found.moment(2),
        "hessian_below": Curve(below, "eigenvalue", EIGENVALUE_GRID),
    }


SPECTRUM = Metric(
    name="spectrum",
    subject="model",
    options=SpectrumOptions,
    table="spectrum",
    variables={
        "hessian_mean": Variable(
            CURVATURE_UNIT, "mean Hessian eigenvalue on the mask's support (training loss, eval mode)"
        ),
        "hessian_square": Variable("nat^2", "mean squared Hessian eigenvalue on the mask's support"),
        "hessian_below": Variable("1", "share of Hessian eigenvalues up to a value (blurred where they crowd)"),
    },
    measure=_measure,
    work=lambda options, images: options.probes * options.steps * 6 * image_count(options.images, images),
    graph=lambda options, images: (image_count(options.images, images), 2 * options.steps),
)
