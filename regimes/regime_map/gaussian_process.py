"""A smooth surface through the cells of a grid, with what seeds differ by as its noise.

Gaussian-process regression on cell means. What no regression library in reach takes is the noise that such grids have:
all cells of one dense network err together, all networks of one dense seed too, and how much is told by the seeds
themselves. So the covariance of the errors of cell means is estimated first (`errors_of`), and the surface's own
smoothness is fitted under it by maximum a posteriori likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from regimes.regime_map.blas_threads import one_blas_thread

Numbers = NDArray[np.float64]

ENOUGH = 6  # degrees of freedom between seeds from which their differences are taken for the noise
THIN = 0.1  # of the least spread: the least noise
BELIEF = 4.0  # degrees of freedom that the common variance counts beside a cell's own
LEVEL, SLOPE = 4.0, 1.0  # prior variances of the mean and of a linear trend over an axis, in variances of the cells
MOST = 250  # cells on which smoothness is fitted; the surface itself goes through all
# Centres and widths of log-normal priors, in standard deviations of the cells and lengths of an axis.
PRIORS = {"height": (0.8, 0.6), "length": (0.6, 0.6), "rough": (0.3, 0.6), "noise": (0.15, 0.8), "row": (0.1, 0.8)}


@dataclass(frozen=True)
class GaussianProcess:
    """A posterior over surfaces: at any place a mean and a standard deviation, in the units of the values given.

    Attributes:
        places: (n, k) coordinates of the cells it goes through.
        noise: standard deviation of a single dense seed's value about its cell.
    """

    places: Numbers
    noise: float
    _errors: Numbers
    _model: Prior
    _weights: Numbers
    _factor: tuple[Numbers, bool]
    _centre: float
    _scale: float

    def at(self, places: Numbers) -> tuple[Numbers, Numbers]:
        """Posterior mean and standard deviation at places (m, k)."""
        cross = self._model.covariance(places, self.places)
        mean = cross @ self._weights
        variance = self._model.variance(places) - (cross * cho_solve(self._factor, cross.T).T).sum(1)
        return self._centre + self._scale * mean, self._scale * np.sqrt(np.clip(variance, 1e-12, None))

    def joint(self, places: Numbers) -> tuple[Numbers, Numbers]:
        """Posterior mean (m,) and covariance (m, m) at places (m, k)."""
        cross = self._model.covariance(places, self.places)
        covariance = self._model.covariance(places, places) - cross @ cho_solve(self._factor, cross.T)
        return self._centre + self._scale * (cross @ self._weights), self._scale**2 * covariance

    def draws(self, places: Numbers, count: int, random: np.random.Generator) -> Numbers:
        """Surfaces drawn from the posterior, at places (m, k): (count, m)."""
        mean, covariance = self.joint(places)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        return mean + random.standard_normal((count, len(mean))) @ root.T

    @property
    def spread(self) -> Numbers:
        """(n,) standard deviations of the errors of the cell means."""
        return np.sqrt(np.diag(self._errors))

    def errors(self, count: int, random: np.random.Generator) -> Numbers:
        """Errors of the cell means drawn anew: (count, n), in the units of the values."""
        values, vectors = np.linalg.eigh(self._errors)
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        return random.standard_normal((count, len(root))) @ root.T


@dataclass(frozen=True)
class Prior:
    """The prior: a level, a linear trend, a Matérn-3/2 surface, and roughness that is each place's own."""

    height: float
    lengths: Numbers
    rough: float

    def covariance(self, a: Numbers, b: Numbers) -> Numbers:
        apart = a[:, None] - b[None]
        distance = np.sqrt(3.0) * np.sqrt(((apart / self.lengths) ** 2).sum(-1))
        smooth = self.height**2 * (1 + distance) * np.exp(-distance)
        own = self.rough**2 * (np.abs(apart).max(-1, initial=0.0) < 1e-9)
        return LEVEL + SLOPE * (a - 0.5) @ (b - 0.5).T + smooth + own

    def variance(self, a: Numbers) -> Numbers:
        return LEVEL + SLOPE * ((a - 0.5) ** 2).sum(1) + self.height**2 + self.rough**2


@one_blas_thread
def fit(
    places: Numbers, values: Numbers, rows: NDArray[np.int64], known: Numbers, shape: Numbers, least: float
) -> GaussianProcess:
    """Fit a surface.

    Args:
        places: (n, k) coordinates of cells from 0 to 1, each cell once.
        values: (n, seeds) of each cell and dense seed, NaN where not measured; a cell has at least one.
        rows: (n,) which cells come from one dense network (of a seed).
        known: (n,) variance of a cell's mean that measuring alone makes; the noise is never taken for less.
        shape: (n,) how noisy cells are beside each other, up to a factor.
        least: the smallest spread of cells that is taken for a spread: grids of one value are flat, not noise.
    """
    means = np.nanmean(values, axis=1)
    centre, scale = float(means.mean()), max(float(means.std()), least)
    errors, noise = errors_of(values, rows, shape)
    same = (rows[:, None] == rows[None]).astype(float)
    if errors is None and known.any():  # what copies tell stands for other dense networks too
        shared = 0.25 * np.sqrt(np.outer(known, known)) * same
        errors, noise = np.diag(0.75 * known) + shared, float(np.sqrt(known.mean()))
    told = errors is not None
    errors = np.zeros((len(means), len(means))) if errors is None else errors
    errors = errors + np.diag(np.clip(known - np.diag(errors), 0.0, None))
    errors = errors + np.diag(
        np.clip((THIN * least) ** 2 - np.diag(errors), 0.0, None)
    )  # no noise at all is not believed
    noise = max(noise, THIN * least) if told else noise
    y, C = (means - centre) / scale, errors / scale**2
    names = ["height", *["length"] * places.shape[1], "rough", *([] if told else ["noise", "row"])]
    prior = np.log([PRIORS[name][0] for name in names]), np.array([PRIORS[name][1] for name in names])

    def parts(theta: Numbers) -> tuple[Prior, Numbers]:
        sizes, tail = np.exp(theta), 1 + places.shape[1]
        model = Prior(sizes[0], sizes[1:tail], sizes[tail])
        return model, C if told else C + sizes[tail + 1] ** 2 * np.eye(len(y)) + sizes[tail + 2] ** 2 * same

    def unlikely(theta: Numbers) -> float:
        model, around = parts(theta)
        whole = model.covariance(places[part], places[part]) + around[np.ix_(part, part)]
        lower = np.linalg.cholesky(whole + 1e-9 * np.eye(len(part)))
        rest = np.linalg.solve(lower, y[part])
        strange = 0.5 * (((theta - prior[0]) / prior[1]) ** 2).sum()
        return float(0.5 * rest @ rest + np.log(np.diag(lower)).sum() + strange)

    part = np.linspace(0, len(y) - 1, min(len(y), MOST)).round().astype(int)
    theta = prior[0]
    if len(y) > 4:
        limits = [(centre - 3 * width, centre + 3 * width) for centre, width in zip(*prior, strict=True)]
        theta = minimize(unlikely, theta, method="L-BFGS-B", bounds=limits).x
    model, around = parts(theta)
    factor = cho_factor(model.covariance(places, places) + around + 1e-9 * np.eye(len(y)), lower=True)
    if not told:
        noise = float(np.hypot(*np.exp(theta[-2:]))) * scale
    return GaussianProcess(places, noise, scale**2 * around, model, cho_solve(factor, y), factor, centre, scale)


def errors_of(values: Numbers, rows: NDArray[np.int64], shape: Numbers) -> tuple[Numbers | None, float]:
    """The covariance (n, n) of the errors of cell means, and the deviation of one seed's value.

    None where there are too few seeds to tell. Three parts, by the method of moments on deviations from the cells'
    means: what a seed does to the whole grid, to all cells of one dense network, and to one cell. A cell's own variance
    counts beside the common one, which stands for four degrees of freedom, so that seeds that agree by chance are not
    believed.
    """
    there = np.isfinite(values)
    count = there.sum(1)
    degrees = int((count - 1).sum())
    if degrees < ENOUGH:
        return None, float("nan")
    apart = np.where(there, values - np.nanmean(values, axis=1, keepdims=True), 0.0) / shape[:, None]
    both = there.astype(float) @ there.T
    pairs = np.where(both > 1.5, both - 1.0, 0.0)  # degrees of freedom that two cells share
    products = apart @ apart.T
    same = rows[:, None] == rows[None]
    off = ~np.eye(len(rows), dtype=bool)
    whole = (apart**2).sum() / degrees
    in_grid = _share(products, pairs * ~same, 0.0, whole)
    in_row = _share(products, pairs * (same & off), in_grid, whole)
    own = (apart**2).sum(1)
    factor = shape * np.sqrt((BELIEF + own / max(whole, 1e-300)) / (BELIEF + count - 1))
    shared = np.where(same, in_row, in_grid) * both / np.outer(count, count)
    shared[~off] = whole / count
    return shared * np.outer(factor, factor), float(np.sqrt(whole) * np.median(shape))


def _share(products: Numbers, weights: Numbers, least: float, most: float) -> float:
    """The covariance of two cells, averaged over those with weight; within what is possible."""
    total = weights.sum()
    value = float((products * (weights > 0)).sum() / total) if total > 0 else least
    return float(np.clip(value, least, most))
