"""When a search is done, and what it saved: time to target, savings with intervals, equality by non-inferiority.

All of it in pairs: seed by seed the arms draw alike and see the same trainings. Intervals are percentile bootstraps
over those searches, on one recording. A search that misses the target takes infinite time; medians bear that, and
nothing is dropped.
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
DRAWS = 4000  # of the bootstrap


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """As a share of time saved; what never arrives is said so, and so is where the other one never does."""
        if not math.isfinite(self.value) or self.value >= 1:
            return _share(self.value)
        return f"{_share(self.value)} ({_share(self.low)} to {_share(self.high)})"

    def plain(self) -> str:
        """As a number."""
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"

    def points(self) -> str:
        """As points of a percentage."""
        return Interval(100 * self.value, 100 * self.low, 100 * self.high).plain()


def _share(value: float) -> str:
    if value >= 1:
        return "the other never"
    return f"{100 * value:.0f} %" if math.isfinite(value) else "never"


def incumbents(found: MethodResult) -> list[tuple[float, int]]:
    """(seconds, setting) each time a better one was found, by validation loss: what a user would hold."""
    best, kept = math.inf, list[tuple[float, int]]()
    for seconds, setting, loss in sorted(found.marks):
        if loss < best:
            best = loss
            kept.append((seconds, setting))
    return kept


def time_to(found: MethodResult, tested: Numbers, target: float) -> float:
    """Seconds until the setting that is held has an expected test error within the target, then and ever after.

    Infinite where it never has.
    """
    reached = math.inf
    for seconds, setting in incumbents(found):
        if tested[setting] > target:
            reached = math.inf
        elif math.isinf(reached):
            reached = seconds
    return reached


def final_error(found: MethodResult, tested: Numbers) -> float:
    """Expected test error of what is held at the end; 1 where nothing is."""
    held = incumbents(found)
    return float(tested[held[-1][1]]) if held else 1.0


def saving(times: Sequence[float], base: Sequence[float], seed: int = 0) -> Interval:
    """``1 - median(times) / median(base)``, over pairs; minus infinity where an arm's median is infinite."""
    ours, theirs = np.asarray(times), np.asarray(base)
    draws = np.random.default_rng(seed).integers(len(ours), size=(DRAWS, len(ours)))
    found = _saved(np.median(ours[draws], axis=1), np.median(theirs[draws], axis=1))
    low, high = np.quantile(found, [0.025, 0.975], method="closest_observation")  # infinite ones are not mixed
    (value,) = _saved(np.median(ours)[None], np.median(theirs)[None])
    return Interval(float(value), float(low), float(high))


def _saved(ours: Numbers, theirs: Numbers) -> Numbers:
    """Where the base line never arrives, and the arm does, all is saved; where neither does, nothing is."""
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isinf(ours) & np.isinf(theirs), 1.0, ours / theirs)
    return np.asarray(1 - ratio)


def mean_difference(errors: Sequence[float], base: Sequence[float], seed: int = 0) -> Interval:
    """Mean over pairs of an arm's error less the base line's."""
    apart = np.asarray(errors) - np.asarray(base)
    draws = np.random.default_rng(seed).integers(len(apart), size=(DRAWS, len(apart)))
    low, high = np.quantile(apart[draws].mean(axis=1), [0.025, 0.975])
    return Interval(float(apart.mean()), float(low), float(high))


def not_worse(difference: Interval, margin: float) -> bool:
    """Non-inferiority: even the upper end of the difference is within the margin."""
    return difference.high <= margin


def target_of(errors: Sequence[float], noise: float) -> float:
    """The base line's mean final test error, and one standard deviation of seed noise."""
    return float(np.mean(errors)) + noise


@dataclass(frozen=True)
class Scores:
    """All arms, scored search by search.

    Attributes:
        target: expected test error that a search has to come to.
        noise: standard deviation of the test error between seeds of one setting.
        seconds: {arm: of the whole search}.
        times: {arm: to the target}.
        errors: {arm: expected test error of what is held at the end}.
        found, tested: what they are read off.
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
        """Score searches by the expected test errors of settings, each by trainings that it has not seen."""
        pairs = {name: list(zip(each, tested, strict=True)) for name, each in found.items()}
        errors = {name: [final_error(*pair) for pair in each] for name, each in pairs.items()}
        target = target_of(errors[BASE], margin * noise)
        times = {name: [time_to(*pair, target) for pair in each] for name, each in pairs.items()}
        seconds = {name: [one.seconds for one in each] for name, each in found.items()}
        return cls(target, noise, seconds, times, errors, found, tested)

    def worse(self, name: str) -> bool:
        """Whether an arm cannot be said to end as well as the base line."""
        return not not_worse(mean_difference(self.errors[name], self.errors[BASE]), self.noise)
