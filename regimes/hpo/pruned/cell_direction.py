"""Direction from the landscape of one cell: is a hotter or a colder dense training better at its density?"""

from __future__ import annotations

import math
from collections.abc import Mapping

MEASURES = ("lmc", "cka", "train_error")
# Logistic regression on `features`, fitted to recorded grids by `python -m regimes.research study directions`, whose
# page says how often it is right on a grid that it was not fitted to.
INTERCEPT = -11.8
WEIGHTS = (5.3, 11.2, 4.3)


def features(lmc: float, cka: float, train_error: float, chance_error: float) -> tuple[float, float, float]:
    """Return the square root of the barrier, CKA, and the training error; errors in units of the error of guessing."""
    return math.sqrt(max(0.0, -lmc) / chance_error), cka, train_error / chance_error


def p_hotter(measures: Mapping[str, float | None], chance_error: float) -> float | None:
    """Return the probability that a hotter dense training has a lower error than a colder one after pruning.

    Args:
        measures: measures of a cell's retrained copies, with those of `MEASURES`; None if one of them is missing.
        chance_error: error of guessing.
    """
    values = [measures.get(name) for name in MEASURES]
    if any(each is None or not math.isfinite(each) for each in values):
        return None
    lmc, cka, train_error = (float(each) for each in values if each is not None)
    found = features(lmc, cka, train_error, chance_error)
    odds = INTERCEPT + sum(weight * each for weight, each in zip(WEIGHTS, found, strict=True))
    return 1 / (1 + math.exp(-odds))
