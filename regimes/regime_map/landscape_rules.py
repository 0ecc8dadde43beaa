"""From measured cells to regimes with their probabilities: by cuts in LMC and CKA.

Both rules find the same cuts (`separation`) and differ in what they hold against them: "smooth" the surfaces through
all cells, "separation" each cell by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr

from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.thresholds import Cuts, cuts_of, separation

DRAWS = 200
MEANING = {
    "I": "poorly connected: a barrier stands between two retrained copies",
    "II-A": "connected, outputs dissimilar",
    "II-B": "connected, outputs similar",
}


@dataclass(frozen=True)
class Classification:
    """What a rule says of a grid.

    Attributes:
        probability: (n, 3) of the regimes I, II-A, II-B in each cell; it speaks of the mean over dense seeds.
        cuts: thresholds, where the rule has some.
        notes: how it came about, in words.
        meaning: of each regime, in words.
        unsure: (draws,) the LMC cut and (draws, densities) the CKA cut as other seeds would have put them.
    """

    probability: Numbers
    cuts: Cuts | None
    notes: list[str]
    unsure: tuple[Numbers, Numbers] | None = None
    meaning: Mapping[str, str] = field(default_factory=lambda: MEANING)


def smooth(m: MeasuredGrid, given: Mapping[str, float]) -> Classification:
    """Regimes of the smooth surfaces through LMC and CKA.

    P(I) is the share of the LMC surface's posterior below the cut, averaged over cuts redrawn with the noise between
    seeds; P(II-A) likewise among what is connected. Cells not measured get the probabilities of the surface there.
    """
    cuts = separation(m, given)
    if not m.told.any():
        return Classification(np.full((len(m.places), 3), 1 / 3), cuts, list(cuts.notes))
    unsure = cuts_redrawn(m, given)
    return Classification(regimes_at(m, unsure, m.places, m.density), cuts, list(cuts.notes), unsure)


def regimes_at(m: MeasuredGrid, unsure: tuple[Numbers, Numbers], places: Numbers, density: Numbers) -> Numbers:
    """(m, 3) probabilities of the regimes at any places (m, k) with densities (m,), on the smooth surfaces."""
    lmc, cka = m.stretch("lmc"), m.stretch("cka")
    mean, spread = m.surface("lmc").at(places)
    poorly = ndtr((lmc.there(unsure[0])[:, None] - mean) / spread)  # (draws, m)
    mean, spread = m.surface("cka").at(places)
    own = np.log10(np.array(m.axes[-1].values))
    lines = np.stack([np.interp(np.log10(density), own, each) for each in cka.there(unsure[1])])
    apart = ndtr((lines - mean) / spread)
    return np.stack([poorly, (1 - poorly) * apart, (1 - poorly) * (1 - apart)], -1).mean(0)


def cuts_redrawn(m: MeasuredGrid, given: Mapping[str, float]) -> tuple[Numbers, Numbers]:
    """The cuts found again on what other seeds might have shown: the surfaces with fresh noise."""
    random = np.random.default_rng(0)
    redrawn = {name: _means_redrawn(m, name, random) for name in ("lmc", "cka")}
    found = [cuts_of(m, given, *each) for each in zip(redrawn["lmc"], redrawn["cka"], strict=True)]
    return np.array([each.lmc for each in found]), np.array([list(each.cka.values()) for each in found])


def _means_redrawn(m: MeasuredGrid, name: str, random: np.random.Generator) -> Numbers:
    """(draws, n) cell means: the surface and the noise that the means have on it; NaN where not measured."""
    surface, stretch = m.surface(name), m.stretch(name)
    there = m.measured(name)
    found = np.full((DRAWS, len(m.places)), np.nan)
    found[:, there] = stretch.back(surface.at(m.places[there])[0] + surface.errors(DRAWS, random))
    return found


def cell_by_cell(m: MeasuredGrid, given: Mapping[str, float]) -> Classification:
    """Regimes of the cell means as they stand; probabilities by a bootstrap over dense seeds, the same in all cells.

    With fewer than three dense seeds the standard errors of the cells stand in. Nothing is smoothed, so a cell on which
    seeds agree by chance looks sure: the study of synthetic diagrams shows by how much.
    """
    cuts = separation(m, given)
    random = np.random.default_rng(0)
    draws = [_resampled(m, name, random) for name in ("lmc", "cka")]
    found = [cuts_of(m, given, *each) for each in zip(*draws, strict=True)]
    unsure = np.array([each.lmc for each in found]), np.array([list(each.cka.values()) for each in found])
    labels = np.stack([_labels(m, cut, *each) for cut, *each in zip(found, *draws, strict=True)])
    probability = np.stack([(labels == number).mean(0) for number in range(3)], -1)
    here = _labels(m, cuts, m.mean("lmc"), m.mean("cka"))
    # What the means say is the label, however the draws scatter.
    cells = np.arange(len(here))
    probability[cells, here] = np.maximum(probability[cells, here], probability.max(1) + 1e-6)
    return Classification(probability / probability.sum(1, keepdims=True), cuts, list(cuts.notes), unsure)


def _labels(m: MeasuredGrid, cuts: Cuts, lmc: Numbers, cka: Numbers) -> np.ndarray:
    own = np.array([cuts.cka[float(each)] for each in m.density])
    return np.where(lmc < cuts.lmc, 0, np.where(cka < own, 1, 2))


def _resampled(m: MeasuredGrid, name: str, random: np.random.Generator) -> Numbers:
    """(draws, n) cell means over dense seeds drawn with replacement, their spread made unbiased."""
    seeds, mean = m.seeds(name), m.mean(name)
    count = seeds.shape[1]
    if count < 3:
        return mean + m.stderr(name) * random.standard_normal((DRAWS, len(mean)))
    chosen = np.random.default_rng(1).integers(0, count, (DRAWS, count))  # of LMC and CKA alike
    whole = np.isfinite(seeds).all(1)
    drawn = mean + (seeds[:, chosen].mean(2).T - mean) * np.sqrt(count / (count - 1))
    stderr = m.stderr(name)
    usual = float(np.sqrt((stderr[whole] ** 2).mean())) if whole.any() else 0.0
    beside = mean + np.maximum(stderr, usual) * random.standard_normal((DRAWS, len(mean)))
    return np.where(whole, drawn, beside)
