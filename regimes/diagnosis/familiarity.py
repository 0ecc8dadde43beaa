"""Familiarity: how far a network lies within the networks that a diagnosis was learnt from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from regimes.diagnosis.measures import MEASURES, Array

NEIGHBOURS = 5
INSIDE = 0.95  # quantile of the learnt networks' own distances that still counts as inside
LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Familiarity:
    """Distance of a network to its nearest learnt networks, compared with theirs.

    Attributes:
        names: measures that are compared: all that were learnt.
        learnt: (rows, measures) on the measures' scales, divided by their standard deviations; NaN where missing.
        spread: standard deviation of every measure.
    """

    names: tuple[str, ...]
    learnt: Array
    spread: Array

    @classmethod
    def fit(cls, values: Mapping[str, Array]) -> Familiarity:
        """Return the familiarity with the rows of a table, from its values on the measures' scales."""
        names = tuple(name for name in MEASURES if name in values and np.isfinite(values[name]).any())
        learnt = np.stack([values[name] for name in names], 1)
        spread = np.maximum(np.nanstd(learnt, axis=0), LEAST_SPREAD)
        return cls(names, learnt / spread, spread)

    def of(self, values: Mapping[str, Array], rows: int) -> Array:
        """Return the familiarity of every row, in [0, 1].

        ``min(1, q / d)`` with d the distance to the fifth-nearest learnt network in the measures both have, each in
        standard deviations, and q the 95 % quantile of that distance among the learnt networks themselves: 1 inside,
        0.5 twice as far out as nearly all of them. A row without any learnt measure has familiarity 0.
        """
        missing = np.full(rows, np.nan)
        asked = np.stack([values.get(name, missing) for name in self.names], 1) / self.spread
        known = np.isfinite(asked)
        familiar = np.zeros(rows)
        for pattern in np.unique(known, axis=0):
            at = (known == pattern).all(1)
            learnt = self.learnt[:, pattern]
            learnt = learnt[np.isfinite(learnt).all(1)]
            if not pattern.any() or len(learnt) < 2:
                continue
            tree, count = cKDTree(learnt), min(NEIGHBOURS, len(learnt) - 1)
            inside = np.quantile(tree.query(learnt, [count + 1])[0], INSIDE)  # a learnt network is its own nearest
            distance = tree.query(asked[at][:, pattern], [count])[0][:, 0]
            familiar[at] = np.minimum(1, inside / np.maximum(distance, 1e-12)) if inside else (distance == 0)
        return familiar
