"""The networks that a diagnosis was learnt from: how near another one is, and what stands in for missing measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from regimes.diagnosis.measures import MEASURES, Array

NEIGHBOURS = 5  # the distance to this one counts for the familiarity
STAND_INS = 10
INSIDE = 0.95  # quantile of the learnt networks' own distances that still counts as inside
LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class LearntNetworks:
    """Measured values of the networks that a diagnosis was learnt from.

    Networks are compared in the measures that both have, on the measures' scales, in standard deviations.

    Attributes:
        values: {measure or derived measure: (rows,)}, on the measures' scales; NaN where missing.
        names: measures that are compared: those that some network has.
        spread: standard deviation of every one of them.
    """

    values: Mapping[str, Array]
    names: tuple[str, ...]
    spread: Array

    @classmethod
    def of(cls, values: Mapping[str, Array]) -> LearntNetworks:
        """Return the networks with the given values on the measures' scales."""
        names = tuple(name for name in MEASURES if name in values and np.isfinite(values[name]).any())
        spread = [max(float(np.nanstd(values[name])), LEAST_SPREAD) for name in names]
        return cls(values, names, np.array(spread))

    def familiarity(self, values: Mapping[str, Array], rows: int) -> Array:
        """Return the familiarity of every row, in [0, 1].

        ``min(1, q / d)`` with d the distance to the fifth-nearest learnt network, and q the 95 % quantile of that
        distance among the learnt networks themselves: 1 inside, 0.5 twice as far out as nearly all of them. A row
        without any learnt measure has familiarity 0.
        """
        familiar = np.zeros(rows)
        for at, asked, learnt, _ in self._compared(values, rows):
            tree, count = cKDTree(learnt), min(NEIGHBOURS, len(learnt) - 1)
            if not count:
                continue
            inside = np.quantile(tree.query(learnt, [count + 1])[0], INSIDE)  # a learnt network is its own nearest
            distance = tree.query(asked, [count])[0][:, 0]
            familiar[at] = np.minimum(1, inside / np.maximum(distance, 1e-12)) if inside else (distance == 0)
        return familiar

    def stand_ins(self, values: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Return {measure: (rows, 10)}, the values of the learnt networks most like every row.

        Only measures that some row lacks are returned. NaN where a row has no learnt measure.
        """
        lacking = {
            name: np.full((rows, STAND_INS), np.nan)
            for name, learnt in self.values.items()
            if np.isfinite(learnt).any() and (name not in values or np.isnan(values[name]).any())
        }
        if lacking:
            for at, asked, learnt, numbers in self._compared(values, rows):
                nearest = cKDTree(learnt).query(asked, min(STAND_INS, len(learnt)))[1].reshape(len(asked), -1)
                for name, stand_ins in lacking.items():
                    stand_ins[at, : nearest.shape[1]] = self.values[name][numbers[nearest]]
        return lacking

    def _compared(self, values: Mapping[str, Array], rows: int) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Yield for every set of known measures: mask of the rows, their points, those of learnt networks, numbers."""
        missing = np.full(rows, np.nan)
        asked = np.stack([values.get(name, missing) for name in self.names], 1) / self.spread
        learnt = np.stack([self.values[name] for name in self.names], 1) / self.spread
        known = np.isfinite(asked)
        for pattern in np.unique(known, axis=0):
            at = (known == pattern).all(1)
            complete = np.isfinite(learnt[:, pattern]).all(1)
            if pattern.any() and complete.any():
                yield at, asked[at][:, pattern], learnt[complete][:, pattern], np.flatnonzero(complete)
