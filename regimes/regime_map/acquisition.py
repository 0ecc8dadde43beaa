"""Which cells to measure next. Nothing here imports torch.

A cell is one dense seed's network at one temperature and load. The border is looked for where the regime is uncertain
and measuring would tell; advice where the best temperature of a load is. Cells of one round are chosen one after the
other, each as if those before had been measured already: what a surface's variance will be does not depend on what is
measured, so that can be worked out beforehand.
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
from regimes.regime_map.landscape_rules import regimes_at
from regimes.regime_map.landscape_rules import smooth as smooth_rule
from regimes.regime_map.measured_grid import MeasuredGrid

Numbers = NDArray[np.float64]
T = TypeVar("T", "_Border", "_Advice")
Cell = tuple[int, int]  # (place in the grid, dense seed)

WRONG = (
    0.02  # share of wrongly named cells that the rest of the sweep could still mend, below which the border is known
)
REGRET = 0.05  # of the error: what the rest of the sweep could still save, below which the advice is known
FIRST = 0.08  # of all cells, measured before anything is known; at least
FEWEST = 8
PRIOR, PRIOR_NOISE = Prior(1.0, np.array(0.4), 0.1), 0.3  # a surface before anything is known of it
DRAWS = 200


@dataclass(frozen=True)
class MapKnowledge:
    """How well a map is known.

    Attributes:
        wrong: share of wrongly named cells that the rest of the sweep could still mend: expected now, less what is
            expected with everything measured.
        regret: likewise how much of the error could still be saved: the expected loss of taking the temperature with
            the lowest expected error, averaged over loads. 0 where no test errors are measured.
    """

    wrong: float
    regret: float

    @property
    def enough(self) -> bool:
        """Whether a sweep may stop."""
        return self.wrong <= WRONG and self.regret <= REGRET


def first_cells(places: Numbers, seeds: int, count: int | None = None) -> list[Cell]:
    """The first round: places that tell most about all others on a smooth surface, dense seeds in turn."""
    count = count or min(len(places), max(FEWEST, round(FIRST * len(places) * seeds)))
    covariance = PRIOR.covariance(places, places)
    chosen: list[int] = []
    while len(chosen) < count:
        spread = np.clip(np.diag(covariance), 1e-12, None)
        gain = (covariance**2).sum(1) / (spread + PRIOR_NOISE**2)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        covariance = _measured(covariance, chosen[-1], PRIOR_NOISE**2)
    return [(place, number % seeds) for number, place in enumerate(chosen)]


def next_cells(data: xr.Dataset, count: int, seeds: int) -> tuple[list[Cell], MapKnowledge]:
    """The cells of the next round, and how well the map is known before it.

    Args:
        data: a checked grid, NaN where not measured yet.
        count: cells of a round.
        seeds: dense seeds that the sweep has.

    Returns:
        Cells that are not measured yet, by their place in the sorted grid (`MeasuredGrid`) and their seed; fewer than
        ``count`` where fewer are left.
    """
    m = MeasuredGrid.of(data)
    free = _free(m, seeds)
    if not m.told.any():  # nothing is known yet: go on as one begins
        spread = [(place, each[0]) for place, _ in first_cells(m.places, seeds, len(m.places)) if (each := free[place])]
        return spread[:count], MapKnowledge(1.0, 1.0)
    border, advice = _Border(m), _Advice(m) if m.knows_error else None
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
    """Turns go to border and advice alike, or all to the one that is not known yet."""
    if (known.wrong <= WRONG) != (known.regret <= REGRET):
        return known.wrong <= WRONG
    return turn % 2 == 1


def _free(m: MeasuredGrid, seeds: int) -> list[list[int]]:
    """Of each place, the dense seeds not measured yet (nor diverged: those are tried once)."""
    values = m.seeds("lmc")
    tried = np.isfinite(values) if "tried" not in m.data else m.seeds("tried") > 0
    numbers = m.data["dense_seed"].values if "dense_seed" in m.data.dims else np.array([0])
    return [
        [seed for seed in range(seeds) if not tried[place, numbers == seed].any()] for place in range(len(m.places))
    ]


class _Border:
    """Where the regimes are uncertain, on the surfaces of LMC and CKA."""

    def __init__(self, m: MeasuredGrid) -> None:
        verdict = smooth_rule(m, {})
        assert verdict.unsure is not None
        self.chances = regimes_at(m, verdict.unsure, m.places, m.density)
        self.covariance = m.surface("lmc").joint(m.places)[1]
        self.noise = m.surface("lmc").noise ** 2
        self.before = np.clip(np.diag(self.covariance), 1e-12, None)

    def to_mend(self, free: Sequence[Sequence[int]]) -> float:
        """The share of cells expected wrong now less that with all cells measured which are left."""
        after = _all_measured(self, free)
        left = np.sqrt(np.clip(np.diag(after.covariance), 0.0, None) / self.before)
        return float(((1 - self.chances.max(1)) * (1 - left)).mean())

    def pick(self, allowed: NDArray[np.bool_]) -> int:
        """The place where the expected number of wrong names falls most, over all places: its neighbours learn too."""
        spread = np.clip(np.diag(self.covariance), 1e-12, None)
        left = np.sqrt(spread / self.before)  # what is left of the uncertainty, with the round's cells so far
        doubt = (1 - self.chances.max(1)) * left
        share = self.covariance**2 / (
            spread[None, :] * (spread + self.noise)[:, None]
        )  # of j's variance, by measuring i
        gain = (doubt[None, :] * (1 - np.sqrt(np.clip(1 - share, 0.0, 1.0)))).sum(1)
        return int(np.where(allowed, gain, -1.0).argmax())

    def note(self, place: int) -> None:
        self.covariance = _measured(self.covariance, place, self.noise)


class _Advice:
    """Where the best temperature of a load is uncertain, on the surface of the log error."""

    def __init__(self, m: MeasuredGrid) -> None:
        surface = m.surface("test_error")
        self.mean, self.covariance = surface.joint(m.places)
        self.noise = surface.noise**2
        _, self.load = np.unique(m.places[:, len(m.knobs) :], axis=0, return_inverse=True)
        self.load = self.load.reshape(-1)

    def to_save(self, free: Sequence[Sequence[int]]) -> float:
        """The regret now less that with all cells measured which are left."""
        after = _all_measured(self, free)
        return self.regret() - after.regret()

    def regret(self) -> float:
        return float(np.mean([self._regret(np.flatnonzero(self.load == each)) for each in range(self.load.max() + 1)]))

    def _regret(self, members: NDArray[np.int64]) -> float:
        """Expected loss at a load: of the lowest mean against the lowest of what may be."""
        values, vectors = np.linalg.eigh(self.covariance[np.ix_(members, members)])
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        drawn = self.mean[members] + np.random.default_rng(0).standard_normal((DRAWS, len(members))) @ root.T
        return float((drawn[:, self.mean[members].argmin()] - drawn.min(1)).mean())

    def pick(self, allowed: NDArray[np.bool_]) -> int:
        """The likeliest rival of the best at the load with the largest regret, or the best, whichever is less known."""
        losses = [(self._regret(np.flatnonzero(self.load == each)), each) for each in range(self.load.max() + 1)]
        for _, load in sorted(losses, reverse=True):
            members = np.flatnonzero((self.load == load) & allowed)
            if len(members):
                everyone = np.flatnonzero(self.load == load)
                best = everyone[self.mean[everyone].argmin()]
                spread = np.sqrt(np.clip(np.diag(self.covariance), 1e-12, None))
                behind = self.mean[members] - self.mean[best]
                hope = spread[members] * np.exp(-((behind / spread[members]) ** 2) / 2)  # of a normal, up to a factor
                return int(members[hope.argmax()])
        return int(np.flatnonzero(allowed)[0])

    def note(self, place: int) -> None:
        self.covariance = _measured(self.covariance, place, self.noise)


def _all_measured(about: T, free: Sequence[Sequence[int]]) -> T:
    """The border, or the advice, with the covariance after everything that is left."""
    after = copy.copy(about)  # a note replaces the covariance, it does not change it
    for place, seeds in enumerate(free):
        for _ in seeds:
            after.note(place)
    return after


def _measured(covariance: Numbers, place: int, noise: float) -> Numbers:
    """The covariance after one more seed is measured at a place."""
    column = covariance[:, place]
    after: Numbers = covariance - np.outer(column, column) / (covariance[place, place] + noise)
    return after


def converged(history: Sequence[MapKnowledge]) -> bool:
    """Whether the map was known well enough after each of the last two rounds: once may be luck."""
    return len(history) > 1 and all(each.enough for each in history[-2:])
