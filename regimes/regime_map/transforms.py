"""Scales on which the noise of a measure is about the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

CLOSE = 0.001  # CKA beyond 0.999 is not told apart
SMALL = 0.02  # of the median error: errors below are hardly told apart on the logarithmic scale


@dataclass(frozen=True)
class Transform:
    """A scale on which the noise of a measure is about the same everywhere.

    Attributes:
        there: from the measure to the scale.
        back: and back.
        slope: derivative of ``there``.
        least: spread of cells on the scale that is taken for none.
    """

    there: Callable[[Numbers], Numbers]
    back: Callable[[Numbers], Numbers]
    slope: Callable[[Numbers], Numbers]
    least: float


def stretch(name: str, unit: float) -> Transform:
    """asinh(LMC / unit), the unit its noise; -log10(1 - CKA); else the log of an error, the unit a usual one."""
    if name.startswith("lmc"):
        return Transform(
            lambda x: np.arcsinh(x / unit), lambda y: np.sinh(y) * unit, lambda x: 1 / np.hypot(x, unit), 0.5
        )
    if name.startswith("cka"):
        return Transform(
            lambda x: -np.log10(np.clip(1 - x, CLOSE, None)),
            lambda y: 1 - 10.0**-y,
            lambda x: 1 / (np.clip(1 - x, CLOSE, None) * np.log(10)),
            0.05,
        )
    small = SMALL * unit or 1e-6
    return Transform(
        lambda x: np.log(np.clip(x, 0, None) + small),
        lambda y: np.exp(y) - small,
        lambda x: 1 / (np.clip(x, 0, None) + small),
        0.05,
    )
