"""Paired t-tests over dense seeds, with Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """Test of a mean difference against zero.

    Attributes:
        mean: mean difference.
        t: mean over its standard error; NaN for fewer than two differences or if they are all equal.
        p: two-sided, Student's t with n - 1 degrees of freedom; NaN if t is.
        positive: number of differences above zero.
        n: number of differences.
    """

    mean: float
    t: float
    p: float
    positive: int
    n: int


def paired_test(differences: Numbers) -> PairedTest:
    """Return the test of paired differences (n,); missing ones are left out."""
    known = differences[np.isfinite(differences)]
    mean = float(known.mean()) if len(known) else float("nan")
    error = float(known.std(ddof=1)) / len(known) ** 0.5 if len(known) > 1 else 0.0
    t = mean / error if error > 0 else float("nan")
    p = float(2 * stats.t.sf(abs(t), len(known) - 1)) if error > 0 else float("nan")
    return PairedTest(mean, t, p, int((known > 0).sum()), len(known))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method; NaN counts as 1."""
    values = np.where(np.isfinite(p), p, 1.0)
    order = np.argsort(values)
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    adjusted = np.empty(len(values))
    adjusted[order] = raised
    return [float(each) for each in adjusted]
