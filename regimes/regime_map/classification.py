"""Result of a rule: the probability of each regime in each cell, and the fitted regions behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.special import expit, logit

from regimes.regime_map.cliff import Cliff
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

MEANING = {
    "I": "poorly connected: a barrier between two retrained copies",
    "II-A": "connected; colder training makes the copies more similar",
    "II-B": "connected; colder training does not make them more similar",
}


@dataclass(frozen=True)
class Regions:
    """Regimes as regions of the plane of temperature and load.

    Attributes:
        grid: the classified grid.
        cliff: the border of regime I.
        colder: (n,) probability of each cell that a colder temperature improves.
        underfit: (n,) share of each cell's probabilities that is spread evenly, see `MeasuredGrid.underfit`.
    """

    grid: MeasuredGrid
    cliff: Cliff
    colder: Numbers
    underfit: Numbers

    def probabilities(self, places: Numbers) -> Numbers:
        """Return the probabilities (m, 3) of the regimes at coordinates (m, k)."""
        poorly, colder = self.cliff.probability(self.grid, places), self.colder_at(places)
        shares = np.stack([poorly, (1 - poorly) * colder, (1 - poorly) * (1 - colder)], -1)
        if not self.underfit.any():
            return shares
        even = self._between(self.underfit, places)[:, None]
        return (1 - even) * shares + even / 3

    def colder_at(self, places: Numbers) -> Numbers:
        """Return the probability (m,) that a colder temperature improves."""
        return self._between(self.colder, places)

    def _between(self, values: Numbers, places: Numbers) -> Numbers:
        """Probabilities (n,) of the cells, interpolated in log-odds at coordinates (m, k)."""
        odds = logit(np.clip(values, 1e-6, 1 - 1e-6)).reshape(self.grid.shape)
        wide = [axis for axis, size in enumerate(self.grid.shape) if size > 1]
        if not wide:
            return np.full(len(places), values[0])
        directed = odds
        for number, axis in enumerate(self.grid.axes):
            if axis.sign < 0:  # coordinates increase towards smaller values
                directed = np.flip(directed, number)
        squeezed = directed.reshape([self.grid.shape[axis] for axis in wide])
        table = RegularGridInterpolator([np.linspace(0, 1, size) for size in squeezed.shape], squeezed)
        return np.asarray(expit(table(np.clip(places[:, wide], 0, 1))))

    def sample(self, places: Numbers, lmc: Numbers) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether candidates are connected and similar, (draws, m) each, given draws (draws, m) of their LMC."""
        random = np.random.default_rng(3)
        similar = random.random((len(lmc), 1)) >= self.colder_at(places)
        return self.cliff.connected(self.grid, places, lmc), similar


@dataclass(frozen=True)
class Classification:
    """Result of a rule on a grid of n cells.

    Attributes:
        probability: (n, 3) probabilities of the regimes I, II-A, II-B of the mean over dense seeds.
        regions: the fitted regions; None if the rule has none, or no cell is usable.
        notes: how the result was obtained, for reports.
        meaning: description of each regime.
    """

    probability: Numbers
    regions: Regions | None
    notes: list[str]
    meaning: Mapping[str, str] = field(default_factory=lambda: MEANING)
