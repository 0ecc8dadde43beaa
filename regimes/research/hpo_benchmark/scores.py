"""Scores of replayed searches: time to target, time saved with intervals, and non-inferiority of the final error.

Searches are paired by seed: all methods draw the same numbers and see the same trainings. Intervals are percentile
bootstraps over searches on one recording. A search that misses the target has an infinite time, which medians can
handle; no search is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regimes.research.hpo_benchmark.methods import BASE
from regimes.research.hpo_benchmark.run_method import MethodResult

Numbers = NDArray[np.float64]
Searches = Mapping[str, Sequence[MethodResult]]
BOOTSTRAP_DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """Format as a share of time saved; special values if either method misses the target."""
        if not math.isfinite(self.value) or self.value >= 1:
            return _share(self.value)
        return f"{_share(self.value)} ({_share(self.low)} to {_share(self.high)})"

    def plain(self) -> str:
        """Format as a number."""
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"

    def points(self) -> str:
        """Format as percentage points."""
        return Interval(100 * self.value, 100 * self.low, 100 * self.high).plain()


def _share(value: float) -> str:
    if value >= 1:
        return "the other never"
    return f"{100 * value:.0f} %" if math.isfinite(value) else "never"


def incumbents(found: MethodResult) -> list[tuple[float, int]]:
    """Return (seconds, setting) of each new best setting by validation loss."""
    best, kept = math.inf, list[tuple[float, int]]()
    for seconds, setting, loss in sorted(found.marks):
        if loss < best:
            best = loss
            kept.append((seconds, setting))
    return kept


def time_to(found: MethodResult, tested: Numbers, target: float) -> float:
    """Return the seconds until the incumbent's expected test error is within the target for good.

    Infinite if that never happens.
    """
    reached = math.inf
    for seconds, setting in incumbents(found):
        if tested[setting] > target:
            reached = math.inf
        elif math.isinf(reached):
            reached = seconds
    return reached


def final_error(found: MethodResult, tested: Numbers) -> float:
    """Return the expected test error of the final incumbent; 1 if there is none."""
    held = incumbents(found)
    return float(tested[held[-1][1]]) if held else 1.0


def saving(times: Sequence[float], base: Sequence[float], seed: int = 0) -> Interval:
    """Return ``1 - median(times) / median(base)`` over pairs; minus infinity if the method's median is infinite."""
    ours, theirs = np.asarray(times), np.asarray(base)
    draws = np.random.default_rng(seed).integers(len(ours), size=(BOOTSTRAP_DRAWS, len(ours)))
    found = _saved(np.median(ours[draws], axis=1), np.median(theirs[draws], axis=1))
    low, high = np.quantile(
        found, [0.025, 0.975], method="closest_observation"
    )  # does not interpolate with infinite values
    (value,) = _saved(np.median(ours)[None], np.median(theirs)[None])
    return Interval(float(value), float(low), float(high))


def _saved(ours: Numbers, theirs: Numbers) -> Numbers:
    """Share of time saved: 1 if only the baseline misses the target, 0 if both do."""
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isinf(ours) & np.isinf(theirs), 1.0, ours / theirs)
    return np.asarray(1 - ratio)


def mean_difference(errors: Sequence[float], base: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean over pairs of the method's error minus the baseline's."""
    apart = np.asarray(errors) - np.asarray(base)
    draws = np.random.default_rng(seed).integers(len(apart), size=(BOOTSTRAP_DRAWS, len(apart)))
    low, high = np.quantile(apart[draws].mean(axis=1), [0.025, 0.975])
    return Interval(float(apart.mean()), float(low), float(high))


def not_worse(difference: Interval, margin: float) -> bool:
    """Test for non-inferiority: whether the upper end of the difference is within the margin."""
    return difference.high <= margin


def target_of(errors: Sequence[float], noise: float) -> float:
    """Return the target: the baseline's mean final test error plus the seed noise."""
    return float(np.mean(errors)) + noise


@dataclass(frozen=True)
class Scores:
    """Scores of all methods, search by search.

    Attributes:
        target: expected test error that a search has to reach.
        noise: standard deviation of the test error between seeds of one setting.
        seconds: {method: seconds of each search}.
        times: {method: seconds until the target is reached}.
        errors: {method: expected test error of each final incumbent}.
        found: {method: results}, which the scores are computed from.
        tested: expected test error of every setting, by search.
    """

    target: float
    noise: float
    seconds: Mapping[str, list[float]]
    times: Mapping[str, list[float]]
    errors: Mapping[str, list[float]]
    found: Searches
    tested: Sequence[Numbers]

    @classmethod
    def of(cls, found: Searches, tested: Sequence[Numbers], noise: float, margin: float = 1.0) -> Scores:
        """Score searches by the expected test errors of their settings, estimated from trainings they have not seen."""
        pairs = {name: list(zip(each, tested, strict=True)) for name, each in found.items()}
        errors = {name: [final_error(*pair) for pair in each] for name, each in pairs.items()}
        target = target_of(errors[BASE], margin * noise)
        times = {name: [time_to(*pair, target) for pair in each] for name, each in pairs.items()}
        seconds = {name: [one.seconds for one in each] for name, each in found.items()}
        return cls(target, noise, seconds, times, errors, found, tested)

    def worse(self, name: str) -> bool:
        """Return whether non-inferiority to the baseline's final test error is not shown."""
        return not not_worse(mean_difference(self.errors[name], self.errors[BASE]), self.noise)
