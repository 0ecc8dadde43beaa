"""Rank correlations over the cells of grids, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Numbers = NDArray[np.float64]
DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        value: from -1 to 1; NaN where fewer than four cells are left, or one of the two does not vary.
        low, high: 95 % interval by bootstrap over cells.
        cells: how many.
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
    def sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def spearman(x: Numbers, y: Numbers, strata: NDArray[np.int64] | None = None, seed: int = 0) -> Correlation:
    """Spearman's correlation of two measures over cells, within strata where they are given.

    Within strata: both are ranked in each stratum by itself and the ranks centred there, so that what differs between
    strata (a density, a knob) does not count. The interval is a percentile bootstrap over cells, drawn within strata,
    ranked anew in each draw.

    Args:
        x, y: (n,); cells where either is not finite are left out.
        strata: (n,) numbers of the strata.
        seed: of the bootstrap.
    """
    strata = np.zeros(len(x), dtype=np.int64) if strata is None else strata
    whole = np.isfinite(x) & np.isfinite(y)
    x, y, strata = x[whole], y[whole], strata[whole]
    value = _within(x, y, strata)
    if len(x) < 4 or not np.isfinite(value):
        return Correlation(np.nan, np.nan, np.nan, len(x))
    random = np.random.default_rng(seed)
    places = [np.flatnonzero(strata == each) for each in np.unique(strata)]
    draws = []
    for _ in range(DRAWS):
        chosen = np.concatenate([random.choice(each, len(each)) for each in places])
        draws.append(_within(x[chosen], y[chosen], strata[chosen]))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Correlation(value, float(low), float(high), len(x))


def _within(x: Numbers, y: Numbers, strata: NDArray[np.int64]) -> float:
    u, v = np.zeros(len(x)), np.zeros(len(y))
    for each in np.unique(strata):
        here = strata == each
        u[here] = rankdata(x[here]) - (here.sum() + 1) / 2
        v[here] = rankdata(y[here]) - (here.sum() + 1) / 2
    size = float(np.sqrt((u @ u) * (v @ v)))
    return float(u @ v) / size if size > 0 else float("nan")
