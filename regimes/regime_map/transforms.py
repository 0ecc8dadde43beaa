"""Variance-stabilising transforms of LMC, CKA and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

CONNECTIVITY = ("lmc", "curve")  # how the names of its variables begin
LMC_NOISE_SHARE = 0.02  # of the error of guessing; LMC is linear within, logarithmic beyond
MIN_CKA, MIN_CKA_DISTANCE = -0.2, 0.001  # CKA and 1 - CKA are clipped to these
ERROR_OFFSET_SHARE = 0.02  # offset of the logarithm, as a share of the median error


@dataclass(frozen=True)
class Transform:
    """A transform to a scale on which the noise of a variable is about constant.

    Attributes:
        forward: from the variable to the scale.
        inverse: from the scale to the variable.
        slope: derivative of ``forward``.
        min_spread: standard deviation of cells on the scale below which a grid counts as flat.
    """

    forward: Callable[[Numbers], Numbers]
    inverse: Callable[[Numbers], Numbers]
    slope: Callable[[Numbers], Numbers]
    min_spread: float


def transform_of(name: str, unit: float, share: bool = False) -> Transform:
    """Return the transform of a variable.

    LMC and curve connectivity: ``asinh(x / (0.02 unit))``; CKA: ``-log10(1 - x)``; errors: ``log(x + 0.02 unit)``.
    The inverses of connectivity, CKA and errors return values that are possible, so that no interval leaves them.

    Args:
        name: the variable.
        unit: the error of guessing for connectivity, or a typical error; not used for CKA.
        share: whether the variable is, or compares, errors that are fractions from 0 to 1.
    """
    most = 1.0 if share else np.inf
    if name.startswith(CONNECTIVITY):
        small = LMC_NOISE_SHARE * unit
        return Transform(
            lambda x: np.arcsinh(x / small),
            lambda y: np.clip(np.sinh(y) * small, -most, most),
            lambda x: 1 / np.hypot(x, small),
            0.3,
        )
    if name.startswith("cka"):
        return Transform(
            lambda x: -np.log10(np.clip(1 - x, MIN_CKA_DISTANCE, None)),
            lambda y: np.clip(1 - 10.0**-y, MIN_CKA, None),
            lambda x: 1 / (np.clip(1 - x, MIN_CKA_DISTANCE, None) * np.log(10)),
            0.05,
        )
    small = ERROR_OFFSET_SHARE * abs(unit) or 1e-6
    return Transform(
        lambda x: np.log(np.clip(x, 0, None) + small),
        lambda y: np.clip(np.exp(y) - small, 0, most),
        lambda x: 1 / (np.clip(x, 0, None) + small),
        0.05,
    )
