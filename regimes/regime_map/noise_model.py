"""Heteroscedastic noise model: cell variances estimated jointly over cells, because each has few seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from regimes.regime_map.blas_threads import one_blas_thread

Numbers = NDArray[np.float64]

MIN_VARIANCE_SHARE = 1e-3  # smallest variance component, as a share of the mean variance


def variance_between_seeds(seeds: Numbers, mean: Numbers) -> Numbers:
    """Return the variance (n,) between the dense seeds (n, seeds) of each cell; NaN if fewer than two are measured."""
    count = np.isfinite(seeds).sum(1)
    rest = np.nan_to_num(seeds - mean[:, None]) ** 2
    return np.where(count > 1, rest.sum(1) / np.maximum(count - 1, 1), np.nan)


@one_blas_thread
def variance_by_size(name: str, mean: Numbers, variance: Numbers) -> Numbers:
    """Fit cell variances by ``a + b size^2``, and return the fitted values (n,).

    ``size`` is the barrier, the distance of CKA from 1, or the error. The fit is by maximum likelihood for sample
    variances of normal values.

    Args:
        name: the variable.
        mean: (n,) cell means.
        variance: (n,) cell variances, NaN if unknown; if all are unknown or zero, zeros are returned.
    """
    size = np.abs(1 - mean) if name.startswith("cka") else np.abs(mean)
    known = np.isfinite(variance) & np.isfinite(size)
    if not known.any() or not variance[known].any():
        return np.zeros(len(size))
    usual, typical = variance[known].mean(), (size[known] ** 2).mean()
    square = np.nan_to_num(size) ** 2 / (typical if typical > 0 else 1.0)

    def unlikely(logs: Numbers) -> float:
        fitted = np.exp(logs[0]) + np.exp(logs[1]) * square[known]
        return float((np.log(fitted) + variance[known] / usual / fitted).sum())

    bounds = [(np.log(MIN_VARIANCE_SHARE), np.log(10.0))] * 2
    found = minimize(unlikely, np.log([0.5, 0.5]), method="L-BFGS-B", bounds=bounds).x
    fitted: Numbers = usual * (np.exp(found[0]) + np.exp(found[1]) * square)
    return fitted
