"""Variance-stabilising transforms of LMC, CKA and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

LMC_OFFSET = 0.01  # of the square root, as a share of the error of guessing
MIN_CKA_DISTANCE = 0.001  # 1 - CKA is clipped to this
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


def transform_of(name: str, unit: float) -> Transform:
    """Return the transform of a variable.

    LMC: ``sign(x) (sqrt(|x| / unit + a) - sqrt(a))`` with a = 0.01; CKA: ``-log10(1 - x)``; errors:
    ``log(x + 0.02 unit)``.

    Args:
        name: the variable.
        unit: the error of guessing for LMC, or a typical error; not used for CKA.
    """
    if name.startswith("lmc"):
        root = np.sqrt(LMC_OFFSET)
        return Transform(
            lambda x: np.sign(x) * (np.sqrt(np.abs(x) / unit + LMC_OFFSET) - root),
            lambda y: np.sign(y) * ((np.abs(y) + root) ** 2 - LMC_OFFSET) * unit,
            lambda x: 0.5 / (unit * np.sqrt(np.abs(x) / unit + LMC_OFFSET)),
            0.03,
        )
    if name.startswith("cka"):
        return Transform(
            lambda x: -np.log10(np.clip(1 - x, MIN_CKA_DISTANCE, None)),
            lambda y: 1 - 10.0**-y,
            lambda x: 1 / (np.clip(1 - x, MIN_CKA_DISTANCE, None) * np.log(10)),
            0.05,
        )
    small = ERROR_OFFSET_SHARE * unit or 1e-6
    return Transform(
        lambda x: np.log(np.clip(x, 0, None) + small),
        lambda y: np.exp(y) - small,
        lambda x: 1 / (np.clip(x, 0, None) + small),
        0.05,
    )
