"""What a measurement returns: a number that knows how sure it is."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

UNSURE = 0.2  # of the value: a standard error beyond it is large


class Unsure(UserWarning):
    """A measured number has a large standard error."""


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the number.
        stderr: its standard error; 0.0 where the number is exact for the data it was measured on, NaN where unknown.
        samples: how many draws, images or steps it rests on.
        unit: unit of value and stderr; "1" for fractions and ratios.
    """

    value: float
    stderr: float
    samples: int
    unit: str = "1"

    @classmethod
    def mean(cls, values: list[float], unit: str = "1") -> Estimate:
        """The mean of independent draws, with the standard error of the mean (NaN for a single draw)."""
        count = len(values)
        centre = math.fsum(values) / count
        if count < 2:
            return cls(centre, math.nan, count, unit)
        variance = math.fsum((value - centre) ** 2 for value in values) / (count - 1)
        return cls(centre, math.sqrt(variance / count), count, unit)

    @classmethod
    def mean_of_few(cls, values: list[float], unit: str = "1") -> Estimate:
        """The mean of a handful of draws; 1.96 of its standard error make a 95 % interval as Student's distribution
        has it, which is wider than the normal one."""
        mean = cls.mean(values, unit)
        return cls(mean.value, mean.stderr * student(len(values) - 1), mean.samples, unit)

    @classmethod
    def fraction(cls, successes: int, trials: int) -> Estimate:
        """A fraction of trials, with its binomial standard error."""
        share = successes / trials
        return cls(share, math.sqrt(share * (1 - share) / trials), trials)

    @property
    def unsure(self) -> bool:
        """Whether the standard error is more than a fifth of the value, or the value is no number."""
        return self.stderr > UNSURE * abs(self.value) or math.isnan(self.value)

    def warned(self, what: str) -> Estimate:
        """The estimate itself; with a `Unsure` warning where its standard error is large."""
        if self.stderr > UNSURE * abs(self.value):
            warnings.warn(f"{what} is not well known: {self}, from {self.samples} samples", Unsure, stacklevel=3)
        return self

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.stderr:.2g}" + ("" if self.unit == "1" else f" {self.unit}")


def student(freedom: float) -> float:
    """Student's 97.5 % quantile over the normal one; NaN without any degree of freedom."""
    from scipy.special import stdtrit  # not for those who only read grids

    return float(stdtrit(freedom, 0.975)) / 1.959964 if freedom > 0 else math.nan
