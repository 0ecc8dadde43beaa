"""Measured numbers with their standard errors."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

MAX_RELATIVE_STDERR = 0.2  # a larger standard error, relative to the value, marks an estimate as uncertain


class UncertainEstimateWarning(UserWarning):
    """Warning that an estimate has a large standard error."""


@dataclass(frozen=True)
class Estimate:
    """A measured number with its standard error.

    Attributes:
        value: the number.
        stderr: its standard error; 0.0 if the value is exact for the data it was measured on, NaN if unknown.
        samples: number of draws, images or steps used.
        unit: unit of value and stderr; "1" for fractions and ratios.
    """

    value: float
    stderr: float
    samples: int
    unit: str = "1"

    @classmethod
    def mean(cls, values: list[float], unit: str = "1") -> Estimate:
        """Return the mean of independent draws with its standard error (NaN for a single draw)."""
        count = len(values)
        centre = math.fsum(values) / count
        if count < 2:
            return cls(centre, math.nan, count, unit)
        variance = math.fsum((value - centre) ** 2 for value in values) / (count - 1)
        return cls(centre, math.sqrt(variance / count), count, unit)

    @classmethod
    def mean_of_few(cls, values: list[float], unit: str = "1") -> Estimate:
        """Return the mean of a small number of draws, with a standard error widened by `student_factor`.

        With it, ``value +- 1.96 stderr`` is a 95 % interval of Student's t distribution.
        """
        mean = cls.mean(values, unit)
        return cls(mean.value, mean.stderr * student_factor(len(values) - 1), mean.samples, unit)

    @classmethod
    def fraction(cls, successes: int, trials: int) -> Estimate:
        """Return a fraction of successes with its binomial standard error."""
        share = successes / trials
        return cls(share, math.sqrt(share * (1 - share) / trials), trials)

    @property
    def unsure(self) -> bool:
        """Whether the standard error exceeds a fifth of the value, or the value is NaN."""
        return self.stderr > MAX_RELATIVE_STDERR * abs(self.value) or math.isnan(self.value)

    def warned(self, what: str) -> Estimate:
        """Return the estimate itself, after an `UncertainEstimateWarning` if its standard error is large."""
        if self.stderr > MAX_RELATIVE_STDERR * abs(self.value):
            warnings.warn(
                f"{what} is uncertain: {self}, from {self.samples} samples", UncertainEstimateWarning, stacklevel=3
            )
        return self

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.stderr:.2g}" + ("" if self.unit == "1" else f" {self.unit}")


def student_factor(degrees_of_freedom: float) -> float:
    """Return the ratio of Student's to the normal 97.5 % quantile; NaN for zero degrees of freedom."""
    from scipy.special import stdtrit  # slow to import, and not needed to read grids

    return float(stdtrit(degrees_of_freedom, 0.975)) / 1.959964 if degrees_of_freedom > 0 else math.nan
