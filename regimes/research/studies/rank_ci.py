"""Rank correlations over the cells of grids, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Numbers = NDArray[np.float64]
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        value: correlation, -1 to 1; NaN for fewer than four cells or where one of the two hardly varies.
        low, high: 95 % interval by bootstrap over cells.
        cells: number of cells.
    """

    value: float
    low: float
    high: float
    cells: int

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "-"
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def spearman(x: Numbers, y: Numbers, strata: NDArray[np.int64] | None = None, seed: int = 0) -> Correlation:
    """Return Spearman's correlation of two measures over cells, optionally within strata.

    Within strata, both measures are ranked and the ranks centred in each stratum, so that differences between strata
    (densities, knobs) have no effect. The interval is a percentile bootstrap over cells, stratified, with new ranks in
    each draw.

    Args:
        x, y: (n,) values; cells where either is not finite are left out.
        strata: (n,) index of each cell's stratum.
        seed: seed of the bootstrap.
    """
    strata = np.zeros(len(x), dtype=np.int64) if strata is None else strata
    whole = np.isfinite(x) & np.isfinite(y)
    x, y, strata = x[whole], y[whole], strata[whole]
    places = [np.flatnonzero(strata == each) for each in np.unique(strata)]
    (value,) = _within(x, y, [each[None] for each in places]) if len(x) else [np.nan]
    if len(x) < 4 or not np.isfinite(value):
        return Correlation(np.nan, np.nan, np.nan, len(x))
    random = np.random.default_rng(seed)
    draws = _within(x, y, [random.choice(each, (BOOTSTRAP_DRAWS, len(each))) for each in places])
    if np.isnan(draws).mean() > 0.1:  # too many ties: draws without any rank order
        return Correlation(np.nan, np.nan, np.nan, len(x))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Correlation(float(value), float(low), float(high), len(x))


def _within(x: Numbers, y: Numbers, strata: Sequence[NDArray[np.int64]]) -> Numbers:
    """Correlation of each draw (draws,); ``strata`` holds the cells drawn in each stratum (draws, cells)."""
    products, squares = np.zeros(len(strata[0])), np.zeros((2, len(strata[0])))
    for chosen in strata:
        u, v = (rankdata(each[chosen], axis=1) - (chosen.shape[1] + 1) / 2 for each in (x, y))
        products += (u * v).sum(axis=1)
        squares += np.stack([(u * u).sum(axis=1), (v * v).sum(axis=1)])
    size = np.sqrt(squares.prod(axis=0))
    return np.divide(products, size, out=np.full(len(size), np.nan), where=size > 0)
