"""How noisy each cell is: told by all cells together, since a few seeds of one say little."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from regimes.regime_map.blas_threads import one_blas_thread

Numbers = NDArray[np.float64]

THIN = 1e-3  # of the usual variance: a cell without any noise is not believed


def between(seeds: Numbers, mean: Numbers) -> Numbers:
    """(n,) variance between the dense seeds (n, seeds) of each cell; NaN where fewer than two are measured."""
    count = np.isfinite(seeds).sum(1)
    rest = np.nan_to_num(seeds - mean[:, None]) ** 2
    return np.where(count > 1, rest.sum(1) / np.maximum(count - 1, 1), np.nan)


@one_blas_thread
def by_size(name: str, mean: Numbers, variance: Numbers) -> Numbers:
    """(n,) a variance smoothed to ``a + b size^2``.

    A constant part, and one in proportion to the barrier, the distance of CKA from 1, or the error; by maximum
    likelihood for variances of normal values.

    Args:
        name: of the measure.
        mean: (n,) of the cells.
        variance: (n,) of the cells, NaN where not known; zeros come back where it is nowhere.
    """
    size = np.abs(1 - mean) if name.startswith("cka") else np.abs(mean)
    told = np.isfinite(variance) & np.isfinite(size)
    if not told.any() or not variance[told].any():
        return np.zeros(len(size))
    usual, typical = variance[told].mean(), (size[told] ** 2).mean()
    square = np.nan_to_num(size) ** 2 / (typical if typical > 0 else 1.0)

    def unlikely(logs: Numbers) -> float:
        fitted = np.exp(logs[0]) + np.exp(logs[1]) * square[told]
        return float((np.log(fitted) + variance[told] / usual / fitted).sum())

    found = minimize(unlikely, np.log([0.5, 0.5]), method="L-BFGS-B", bounds=[(np.log(THIN), np.log(10.0))] * 2).x
    fitted: Numbers = usual * (np.exp(found[0]) + np.exp(found[1]) * square)
    return fitted
