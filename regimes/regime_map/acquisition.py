"""Acquisition functions of adaptive sweeps: choose the cells to measure next.

A cell is one dense seed's network at one temperature and load. Two objectives alternate: the border, where the regime
is uncertain and a measurement reduces that uncertainty, and the advice, where the best temperature of a load is
uncertain. The cells of a round are chosen greedily, each as if those before it had been measured: the posterior
variance of a Gaussian process does not depend on the measured values, so it can be updated beforehand.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from regimes.regime_map.gaussian_process import Prior
from regimes.regime_map.measured_grid import MeasuredGrid
from regimes.regime_map.transition import transition

Numbers = NDArray[np.float64]
T = TypeVar("T", "_Border", "_Advice")
Cell = tuple[int, int]  # (index into MeasuredGrid.places, dense seed)

MAX_WRONG_SHARE = 0.02  # the border is known once the remaining cells can correct at most this share of the labels
MAX_REGRET = 0.05  # the advice is known once the remaining cells can lower the log error by at most this
FIRST_ROUND_SHARE = 0.08  # share of all cells in the first round
MIN_FIRST_CELLS = 8
INITIAL_PRIOR, INITIAL_NOISE = Prior(1.0, np.array(0.4), 0.1), 0.3  # of a surface before any measurement
POSTERIOR_DRAWS = 200


@dataclass(frozen=True)
class MapKnowledge:
    """Expected gain of measuring the remaining cells of a sweep.

    Attributes:
        wrong: expected share of wrong regime labels now minus the share expected with all cells measured.
        regret: expected regret (in log test error) of choosing the temperature with the lowest expected error, averaged
            over loads, now minus that with all cells measured. 0 if no test errors are measured.
    """

    wrong: float
    regret: float

    @property
    def sufficient(self) -> bool:
        """Whether both values are below their limits, so that the sweep may stop."""
        return self.wrong <= MAX_WRONG_SHARE and self.regret <= MAX_REGRET


def first_cells(places: Numbers, seeds: int, count: int | None = None) -> list[Cell]:
    """Return the first round, chosen greedily to minimise the total variance of a smooth prior.

    Args:
        places: (n, k) coordinates of all settings.
        seeds: number of dense seeds, which take turns.
        count: number of cells; None for 8 % of all cells, at least 8.
    """
    count = count or min(len(places), max(MIN_FIRST_CELLS, round(FIRST_ROUND_SHARE * len(places) * seeds)))
    covariance = INITIAL_PRIOR.covariance(places, places)
    chosen: list[int] = []
    while len(chosen) < count:
        spread = np.clip(np.diag(covariance), 1e-12, None)
        gain = (covariance**2).sum(1) / (spread + INITIAL_NOISE**2)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        covariance = _measured(covariance, chosen[-1], INITIAL_NOISE**2)
    return [(place, number % seeds) for number, place in enumerate(chosen)]


def next_cells(data: xr.Dataset, count: int, seeds: int) -> tuple[list[Cell], MapKnowledge]:
    """Return the cells of the next round, and how well the map is known before it.

    Args:
        data: a checked grid, NaN where not measured yet.
        count: number of cells in a round.
        seeds: number of dense seeds of the sweep.

    Returns:
        Cells not measured yet, each as (index in the sorted grid, see `MeasuredGrid`, dense seed), fewer than ``count``
        if fewer remain; and a `MapKnowledge`.
    """
    m = MeasuredGrid.of(data)
    free = _free(m, seeds)
    if not m.usable.any():  # nothing to learn from yet: continue the initial design
        spread = [(place, each[0]) for place, _ in first_cells(m.places, seeds, len(m.places)) if (each := free[place])]
        return spread[:count], MapKnowledge(1.0, 1.0)
    border, advice = _Border(m), _Advice(m) if m.has_test_error else None
    known = MapKnowledge(border.to_mend(free), advice.to_save(free) if advice is not None else 0.0)
    chosen: list[Cell] = []
    for turn in itertools.count():
        open_places = np.array([bool(each) for each in free])
        if len(chosen) == count or not open_places.any():
            break
        about = advice if advice is not None and _turn_of_advice(turn, known) else border
        place = about.pick(open_places)
        chosen.append((place, free[place].pop(0)))
        border.note(place)
        if advice is not None:
            advice.note(place)
    return chosen, known


def _turn_of_advice(turn: int, known: MapKnowledge) -> bool:
    """Return whether this cell is chosen for the advice: turns alternate, or all go to the one still unknown."""
    if (known.wrong <= MAX_WRONG_SHARE) != (known.regret <= MAX_REGRET):
        return known.wrong <= MAX_WRONG_SHARE
    return turn % 2 == 1


def _free(m: MeasuredGrid, seeds: int) -> list[list[int]]:
    """Dense seeds not measured yet, per place; a diverged cell counts as measured."""
    values = m.seeds("lmc")
    tried = np.isfinite(values) if "tried" not in m.data else m.seeds("tried") > 0
    numbers = m.data["dense_seed"].values if "dense_seed" in m.data.dims else np.array([0])
    return [
        [seed for seed in range(seeds) if not tried[place, numbers == seed].any()] for place in range(len(m.places))
    ]


class _Border:
    """Acquisition for the borders: where cells may be in I on the surface of LMC, or in II-A on that of CKA."""

    def __init__(self, m: MeasuredGrid) -> None:
        poorly, dissimilar, similar = transition(m, {}).probability.T
        self.doubts = [np.minimum(poorly, 1 - poorly), np.minimum(dissimilar, similar)]
        self.surfaces = [_Spread(m, "lmc"), _Spread(m, "cka")]

    def to_mend(self, free: Sequence[Sequence[int]]) -> float:
        """Expected share of wrong labels now minus that with all free cells measured."""
        after = _all_measured(self, free)
        pairs = zip(self.doubts, after.surfaces, strict=True)
        return float(sum((doubt * (1 - surface.left())).mean() for doubt, surface in pairs))

    def pick(self, allowed: NDArray[np.bool_]) -> int:
        """Return the place that lowers the expected number of wrong labels, over all places, the most."""
        gains = [surface.gain(doubt) for doubt, surface in zip(self.doubts, self.surfaces, strict=True)]
        return int(np.where(allowed, np.sum(gains, axis=0), -1.0).argmax())

    def note(self, place: int) -> None:
        self.surfaces = [surface.measured(place) for surface in self.surfaces]


class _Spread:
    """Posterior covariance of a surface at all places, and how it falls with further measurements."""

    def __init__(self, m: MeasuredGrid, name: str) -> None:
        self.covariance = m.surface(name).posterior(m.places)[1]
        self.noise = m.surface(name).noise ** 2
        self.before = np.clip(np.diag(self.covariance), 1e-12, None)

    def left(self) -> Numbers:
        """Return the standard deviation (n,) relative to that before any further measurement."""
        return np.sqrt(np.clip(np.diag(self.covariance), 0.0, None) / self.before)

    def gain(self, doubt: Numbers) -> Numbers:
        """Return the expected number of labels (n,) mended by measuring each place, given their doubt (n,)."""
        spread = np.clip(np.diag(self.covariance), 1e-12, None)
        # share[i, j]: relative reduction of the variance at j by measuring i
        share = self.covariance**2 / (spread[None, :] * (spread + self.noise)[:, None])
        mended: Numbers = ((doubt * self.left())[None, :] * (1 - np.sqrt(np.clip(1 - share, 0.0, 1.0)))).sum(1)
        return mended

    def measured(self, place: int) -> _Spread:
        """Return a copy after one more seed is measured at a place."""
        after = copy.copy(self)
        after.covariance = _measured(self.covariance, place, self.noise)
        return after


class _Advice:
    """Acquisition for the advice: where the best temperature of a load is uncertain, on the log test error."""

    def __init__(self, m: MeasuredGrid) -> None:
        surface = m.surface("test_error")
        self.mean, self.covariance = surface.posterior(m.places)
        self.noise = surface.noise**2
        _, self.load = np.unique(m.load_coordinates(m.places), axis=0, return_inverse=True)
        self.load = self.load.reshape(-1)

    def to_save(self, free: Sequence[Sequence[int]]) -> float:
        """Regret now minus that with all free cells measured."""
        after = _all_measured(self, free)
        return self.regret() - after.regret()

    def regret(self) -> float:
        return float(np.mean([self._regret(np.flatnonzero(self.load == each)) for each in range(self.load.max() + 1)]))

    def _regret(self, members: NDArray[np.int64]) -> float:
        """Expected regret at a load: posterior draw at the lowest mean minus the minimum of the draw."""
        values, vectors = np.linalg.eigh(self.covariance[np.ix_(members, members)])
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        drawn = self.mean[members] + np.random.default_rng(0).standard_normal((POSTERIOR_DRAWS, len(members))) @ root.T
        return float((drawn[:, self.mean[members].argmin()] - drawn.min(1)).mean())

    def pick(self, allowed: NDArray[np.bool_]) -> int:
        """Return, at the load with the largest regret, the place that is most likely to change the best temperature."""
        losses = [(self._regret(np.flatnonzero(self.load == each)), each) for each in range(self.load.max() + 1)]
        for _, load in sorted(losses, reverse=True):
            members = np.flatnonzero((self.load == load) & allowed)
            if len(members):
                everyone = np.flatnonzero(self.load == load)
                best = everyone[self.mean[everyone].argmin()]
                spread = np.sqrt(np.clip(np.diag(self.covariance), 1e-12, None))
                behind = self.mean[members] - self.mean[best]
                hope = spread[members] * np.exp(
                    -((behind / spread[members]) ** 2) / 2
                )  # normal density times spread, up to a factor
                return int(members[hope.argmax()])
        return int(np.flatnonzero(allowed)[0])

    def note(self, place: int) -> None:
        self.covariance = _measured(self.covariance, place, self.noise)


def _all_measured(about: T, free: Sequence[Sequence[int]]) -> T:
    """Copy of an acquisition with the covariance after measuring all free cells."""
    after = copy.copy(about)  # note() replaces the covariance instead of changing it
    for place, seeds in enumerate(free):
        for _ in seeds:
            after.note(place)
    return after


def _measured(covariance: Numbers, place: int, noise: float) -> Numbers:
    """Posterior covariance after one more seed is measured at a place."""
    column = covariance[:, place]
    after: Numbers = covariance - np.outer(column, column) / (covariance[place, place] + noise)
    return after


def converged(history: Sequence[MapKnowledge]) -> bool:
    """Return whether the map was known well enough after each of the last two rounds (one may be chance)."""
    return len(history) > 1 and all(each.sufficient for each in history[-2:])
