"""Single wild cells: values far outside those of all their neighbours, as of a network that failed once."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
from numpy.typing import NDArray

MIN_NEIGHBOURS = 5  # measured neighbours, diagonal ones included; cells at an edge may rightly differ from fewer
MIN_DISTANCE = {"lmc": 1.5, "cka": 0.3, "test_error": 0.5}  # on the transformed scale, beyond all neighbours
MAX_SPREAD_SHARE = 0.5  # of that distance, the standard deviation of the neighbours

Numbers = NDArray[np.float64]


def wild_cells(values: Numbers, name: str) -> NDArray[np.bool_]:
    """Return a mask (shape) of the cells beyond all their neighbours by far, while these agree.

    Args:
        values: cell means on the transformed scale, over the axes of a grid; NaN if not measured.
        name: the variable; others than in `MIN_DISTANCE` have no wild cells.
    """
    if name not in MIN_DISTANCE:
        return np.zeros(values.shape, bool)
    padded = np.pad(values, 1, constant_values=np.nan)
    steps = [step for step in itertools.product((0, 1, 2), repeat=values.ndim) if set(step) != {1}]
    around = np.stack(
        [padded[tuple(slice(at, at + size) for at, size in zip(step, values.shape, strict=True))] for step in steps]
    )
    enough = np.isfinite(around).sum(0) >= MIN_NEIGHBOURS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # cells without measured neighbours
        low, high = np.nanmin(around, 0), np.nanmax(around, 0)
        spread = np.nanstd(around, 0)
    beyond = np.maximum(values - high, low - values)
    return np.asarray(enough & (beyond > MIN_DISTANCE[name]) & (spread < MAX_SPREAD_SHARE * MIN_DISTANCE[name]))
