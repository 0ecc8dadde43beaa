"""Gaussian-process regression on the cell means of a grid, with correlated noise estimated from dense seeds.

The errors of cell means are correlated: all cells of one dense network share its error, and so do all networks of one
dense seed. Their covariance is estimated first from the seeds (`error_covariance`); the hyperparameters of the smooth
surface are then fitted under it by maximum a posteriori estimation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from regimes.regime_map.blas_threads import one_blas_thread

Numbers = NDArray[np.float64]

MIN_DEGREES_OF_FREEDOM = 6  # between seeds, to estimate the noise from them
MIN_NOISE_SHARE = 0.1  # smallest noise, as a share of ``min_spread``
PRIOR_DEGREES_OF_FREEDOM = 4.0  # weight of the common variance against a cell's own
LEVEL_VARIANCE, SLOPE_VARIANCE = 4.0, 1.0  # prior variances of level and linear trend, in variances of the cells
MAX_FITTED_CELLS = 250  # for the hyperparameters; the posterior uses all cells
# Medians and log standard deviations of log-normal priors, in standard deviations of the cells and axis lengths.
PRIORS = {"height": (0.8, 0.6), "length": (0.6, 0.6), "rough": (0.3, 0.6), "noise": (0.25, 0.6), "row": (0.25, 0.6)}


@dataclass(frozen=True)
class GaussianProcess:
    """Posterior of a surface, in the units of the fitted values.

    Attributes:
        places: (n, k) coordinates of the fitted cells.
        noise: standard deviation of a single dense seed's value around the mean of its cell.
    """

    places: Numbers
    noise: float
    _errors: Numbers
    _model: Prior
    _weights: Numbers
    _factor: tuple[Numbers, bool]
    _centre: float
    _scale: float

    def predict(self, places: Numbers) -> tuple[Numbers, Numbers]:
        """Return the posterior mean (m,) and standard deviation (m,) at places (m, k)."""
        cross = self._model.covariance(places, self.places)
        mean = cross @ self._weights
        variance = self._model.variance(places) - (cross * cho_solve(self._factor, cross.T).T).sum(1)
        return self._centre + self._scale * mean, self._scale * np.sqrt(np.clip(variance, 1e-12, None))

    def posterior(self, places: Numbers) -> tuple[Numbers, Numbers]:
        """Return the posterior mean (m,) and covariance (m, m) at places (m, k)."""
        cross = self._model.covariance(places, self.places)
        covariance = self._model.covariance(places, places) - cross @ cho_solve(self._factor, cross.T)
        return self._centre + self._scale * (cross @ self._weights), self._scale**2 * covariance

    def cross(self, places: Numbers, others: Numbers) -> Numbers:
        """Return the posterior covariance (m, q) between places (m, k) and other places (q, k)."""
        left, right = self._model.covariance(places, self.places), self._model.covariance(others, self.places)
        return self._scale**2 * (self._model.covariance(places, others) - left @ cho_solve(self._factor, right.T))

    @property
    def roughness(self) -> float:
        """Standard deviation of the part of the surface that no other place tells anything about."""
        return self._scale * self._model.rough

    def sample(self, places: Numbers, count: int, random: np.random.Generator) -> Numbers:
        """Return ``count`` posterior draws (count, m) at places (m, k)."""
        mean, covariance = self.posterior(places)
        return mean + random.standard_normal((count, len(mean))) @ _root(covariance).T


@dataclass(frozen=True)
class Prior:
    """Prior covariance: a level, a linear trend, a Matérn-3/2 surface, and independent roughness at each place.

    Attributes:
        height: standard deviation of the Matérn-3/2 surface.
        lengths: its length scale per axis, or one for all.
        rough: standard deviation of the roughness.
    """

    height: float
    lengths: Numbers
    rough: float

    def covariance(self, a: Numbers, b: Numbers) -> Numbers:
        """Return the prior covariance (m, n) between places a (m, k) and b (n, k)."""
        apart = a[:, None] - b[None]
        distance = np.sqrt(3.0) * np.sqrt(((apart / self.lengths) ** 2).sum(-1))
        smooth = self.height**2 * (1 + distance) * np.exp(-distance)
        own = self.rough**2 * (np.abs(apart).max(-1, initial=0.0) < 1e-9)
        return LEVEL_VARIANCE + SLOPE_VARIANCE * (a - 0.5) @ (b - 0.5).T + smooth + own

    def with_gradient(self, a: Numbers) -> tuple[Numbers, list[Numbers]]:
        """Return the prior covariance (n, n) of places (n, k), and its derivatives by the logarithms of height, lengths
        and roughness.
        """
        squares = ((a[:, None] - a[None]) / self.lengths) ** 2  # (n, n, k)
        distance = np.sqrt(3.0 * squares.sum(-1))
        decay = self.height**2 * np.exp(-distance)
        smooth, own = (1 + distance) * decay, self.rough**2 * np.eye(len(a))
        by_length = [3 * squares[..., axis] * decay for axis in range(a.shape[1])]
        covariance = LEVEL_VARIANCE + SLOPE_VARIANCE * (a - 0.5) @ (a - 0.5).T + smooth + own
        return covariance, [2 * smooth, *by_length, 2 * own]

    def variance(self, a: Numbers) -> Numbers:
        """Return the prior variance (m,) at places a (m, k)."""
        return LEVEL_VARIANCE + SLOPE_VARIANCE * ((a - 0.5) ** 2).sum(1) + self.height**2 + self.rough**2


def _root(covariance: Numbers) -> Numbers:
    """A matrix R with R R^T = covariance, up to rounding."""
    jitter = 1e-10 * max(float(np.diag(covariance).max(initial=0.0)), 1e-300)
    try:
        return np.asarray(np.linalg.cholesky(covariance + jitter * np.eye(len(covariance))))
    except np.linalg.LinAlgError:  # singular beyond rounding
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))


@one_blas_thread
def fit(
    places: Numbers, values: Numbers, rows: NDArray[np.int64], known: Numbers, shape: Numbers, min_spread: float
) -> GaussianProcess:
    """Fit a Gaussian process to the cells of a grid.

    Args:
        places: (n, k) coordinates of the cells from 0 to 1, each cell once.
        values: (n, seeds) values per dense seed, NaN if not measured; at least one per cell.
        rows: (n,) index of each cell's dense training; cells with the same index share their dense networks.
        known: (n,) known variance of the cell means (images, copies), a lower bound of their noise.
        shape: (n,) relative noise of the cells.
        min_spread: smallest standard deviation of the cells to scale by, so that a constant grid is flat.

    Returns:
        The posterior, with hyperparameters at their maximum a posteriori estimate.
    """
    means = np.nanmean(values, axis=1)
    centre, scale = float(means.mean()), max(float(means.std()), min_spread)
    errors, noise = error_covariance(values, rows, shape)
    same = (rows[:, None] == rows[None]).astype(float)
    estimated = errors is not None  # else noise and row effects are fitted, beside the known variance between copies
    errors = np.zeros((len(means), len(means))) if errors is None else errors
    errors = errors + np.diag(np.clip(known - np.diag(errors), 0.0, None))
    # Seeds that agree exactly do not mean that there is no noise.
    errors = errors + np.diag(np.clip((MIN_NOISE_SHARE * min_spread) ** 2 - np.diag(errors), 0.0, None))
    noise = max(noise, MIN_NOISE_SHARE * min_spread) if estimated else noise
    y, C = (means - centre) / scale, errors / scale**2
    names = ["height", *["length"] * places.shape[1], "rough", *([] if estimated else ["noise", "row"])]
    prior = np.log([PRIORS[name][0] for name in names]), np.array([PRIORS[name][1] for name in names])
    tail = 1 + places.shape[1]

    def parts(theta: Numbers, of: slice | NDArray[np.int64]) -> tuple[Prior, list[Numbers]]:
        """The prior, and the covariances of noise and rows if they are fitted."""
        sizes, count = np.exp(theta), len(y[of])
        fitted = [] if estimated else [sizes[tail + 1] ** 2 * np.eye(count), sizes[tail + 2] ** 2 * same[of][:, of]]
        return Prior(sizes[0], sizes[1:tail], sizes[tail]), fitted

    part = np.linspace(0, len(y) - 1, min(len(y), MAX_FITTED_CELLS)).round().astype(int)

    def unlikely(theta: Numbers) -> tuple[float, Numbers]:
        model, fitted = parts(theta, part)
        covariance, gradient = model.with_gradient(places[part])
        whole = covariance + C[part][:, part] + sum(fitted) + 1e-9 * np.eye(len(part))
        value, by = _negative_log_likelihood(whole, [*gradient, *(2 * each for each in fitted)], y[part])
        apart = (theta - prior[0]) / prior[1]
        return value + 0.5 * float((apart**2).sum()), by + apart / prior[1]

    theta = prior[0]
    if len(y) > 4:
        limits = [(centre - 3 * width, centre + 3 * width) for centre, width in zip(*prior, strict=True)]
        theta = minimize(unlikely, theta, jac=True, method="L-BFGS-B", bounds=limits).x
    model, fitted = parts(theta, slice(None))
    around = C + sum(fitted)
    factor = cho_factor(model.covariance(places, places) + around + 1e-9 * np.eye(len(y)), lower=True)
    if not estimated:
        noise = float(np.hypot(*np.exp(theta[-2:]))) * scale
    return GaussianProcess(places, noise, scale**2 * around, model, cho_solve(factor, y), factor, centre, scale)


def _negative_log_likelihood(covariance: Numbers, gradient: list[Numbers], y: Numbers) -> tuple[float, Numbers]:
    """Of values (n,) with mean 0, up to a constant; and its derivatives, given those of the covariance."""
    factor = cho_factor(covariance, lower=True)
    inverse = cho_solve(factor, np.eye(len(y)))
    solved = inverse @ y
    value = 0.5 * float(y @ solved) + float(np.log(np.diag(factor[0])).sum())
    inner = inverse - np.outer(solved, solved)
    return value, np.array([0.5 * float((inner * each).sum()) for each in gradient])


def error_covariance(values: Numbers, rows: NDArray[np.int64], shape: Numbers) -> tuple[Numbers | None, float]:
    """Estimate the covariance (n, n) of the errors of cell means, and the standard deviation of one seed's value.

    Variance components by the method of moments: the effect of a seed on the whole grid, on all cells of one dense
    network, and on one cell. A cell's own variance is shrunk towards the common one, which has the weight of four
    degrees of freedom, because seeds may agree by chance.

    Args:
        values, rows, shape: as for `fit`.

    Returns:
        The covariance, None if there are too few seeds; and the standard deviation, NaN then.
    """
    there = np.isfinite(values)
    count = there.sum(1)
    degrees = int((count - 1).sum())
    if degrees < MIN_DEGREES_OF_FREEDOM:
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
    relative = (PRIOR_DEGREES_OF_FREEDOM + own / max(whole, 1e-300)) / (PRIOR_DEGREES_OF_FREEDOM + count - 1)
    factor = shape * np.sqrt(relative)
    shared = np.where(same, in_row, in_grid) * both / np.outer(count, count)
    shared[~off] = whole / count
    return shared * np.outer(factor, factor), float(np.sqrt(whole) * np.median(shape))


def _share(products: Numbers, weights: Numbers, least: float, most: float) -> float:
    """Mean covariance over pairs of cells with positive weight, clipped to [least, most]."""
    total = weights.sum()
    value = float((products * (weights > 0)).sum() / total) if total > 0 else least
    return float(np.clip(value, least, most))
