"""The rules "smooth" and "separation": regimes with probabilities, from cuts in LMC and CKA.

Both find the same cuts (`cuts_of_grid`). "smooth" compares them with the Gaussian-process surfaces through all cells,
"separation" with each cell's own mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr

from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.thresholds import Cuts, cuts_of_grid, find_cuts

POSTERIOR_DRAWS = 200
MEANING = {
    "I": "poorly connected: a barrier between two retrained copies",
    "II-A": "connected, outputs dissimilar",
    "II-B": "connected, outputs similar",
}


@dataclass(frozen=True)
class Classification:
    """Result of a rule on a grid of n cells.

    Attributes:
        probability: (n, 3) probabilities of the regimes I, II-A, II-B of the mean over dense seeds.
        cuts: the thresholds; None if the rule has none.
        notes: how the result was obtained, for reports.
        cut_samples: LMC cuts (draws,) and CKA cuts (draws, densities), found again under resampled noise; None if the
            rule has no cuts or no cell is usable.
        meaning: description of each regime.
    """

    probability: Numbers
    cuts: Cuts | None
    notes: list[str]
    cut_samples: tuple[Numbers, Numbers] | None = None
    meaning: Mapping[str, str] = field(default_factory=lambda: MEANING)


def smooth(m: MeasuredGrid, given: Mapping[str, float]) -> Classification:
    """Classify the Gaussian-process surfaces through LMC and CKA.

    P(I) is the posterior probability that LMC is below its cut, averaged over resampled cuts; P(II-A) and P(II-B) split
    the rest by the posterior of CKA. Cells that are not measured get the probabilities of the surface.
    """
    cuts = cuts_of_grid(m, given)
    if not m.usable.any():
        return Classification(np.full((len(m.places), 3), 1 / 3), cuts, list(cuts.notes))
    cut_samples = resampled_cuts(m, given)
    return Classification(regimes_at(m, cut_samples, m.places, m.density), cuts, list(cuts.notes), cut_samples)


def regimes_at(m: MeasuredGrid, cut_samples: tuple[Numbers, Numbers], places: Numbers, density: Numbers) -> Numbers:
    """Return the probabilities (m, 3) of the regimes at places (m, k) with densities (m,), on the surfaces."""
    lmc, cka = m.transform("lmc"), m.transform("cka")
    mean, spread = m.surface("lmc").predict(places)
    poorly = ndtr((lmc.forward(cut_samples[0])[:, None] - mean) / spread)  # (draws, m)
    mean, spread = m.surface("cka").predict(places)
    own = np.log10(np.array(m.density_axis.values))
    lines = np.stack([np.interp(np.log10(density), own, each) for each in cka.forward(cut_samples[1])])
    apart = ndtr((lines - mean) / spread)
    return np.stack([poorly, (1 - poorly) * apart, (1 - poorly) * (1 - apart)], -1).mean(0)


def resampled_cuts(m: MeasuredGrid, given: Mapping[str, float]) -> tuple[Numbers, Numbers]:
    """Return LMC and CKA cuts found again on draws of the cell means: the surfaces with resampled noise."""
    random = np.random.default_rng(0)
    redrawn = {name: _means_redrawn(m, name, random) for name in ("lmc", "cka")}
    found = [find_cuts(m, given, *each) for each in zip(redrawn["lmc"], redrawn["cka"], strict=True)]
    return np.array([each.lmc for each in found]), np.array([list(each.cka.values()) for each in found])


def _means_redrawn(m: MeasuredGrid, name: str, random: np.random.Generator) -> Numbers:
    """Draws (draws, n) of the cell means: surface plus noise; NaN if not measured."""
    surface, measured = m.surface(name), m.measured(name)
    drawn = surface.predict(m.places[measured])[0] + surface.sample_errors(POSTERIOR_DRAWS, random)
    means = np.full((POSTERIOR_DRAWS, len(m.places)), np.nan)
    means[:, measured] = m.transform(name).inverse(drawn)
    return means


def cell_by_cell(m: MeasuredGrid, given: Mapping[str, float]) -> Classification:
    """Classify each cell by its own mean; probabilities by a bootstrap over dense seeds, the same seeds in all cells.

    With fewer than three dense seeds, means are drawn from a normal with the cells' standard errors instead. Nothing is
    smoothed, so probabilities are overconfident where seeds agree by chance.
    """
    cuts = cuts_of_grid(m, given)
    random = np.random.default_rng(0)
    draws = [_resampled(m, name, random) for name in ("lmc", "cka")]
    found = [find_cuts(m, given, *each) for each in zip(*draws, strict=True)]
    cut_samples = np.array([each.lmc for each in found]), np.array([list(each.cka.values()) for each in found])
    labels = np.stack([_labels(m, cut, *each) for cut, *each in zip(found, *draws, strict=True)])
    probability = np.stack([(labels == number).mean(0) for number in range(3)], -1)
    here = _labels(m, cuts, m.mean("lmc"), m.mean("cka"))
    # The label is that of the means, however the draws scatter.
    cells = np.arange(len(here))
    probability[cells, here] = np.maximum(probability[cells, here], probability.max(1) + 1e-6)
    return Classification(probability / probability.sum(1, keepdims=True), cuts, list(cuts.notes), cut_samples)


def _labels(m: MeasuredGrid, cuts: Cuts, lmc: Numbers, cka: Numbers) -> np.ndarray:
    own = np.array([cuts.cka[float(each)] for each in m.density])
    return np.where(lmc < cuts.lmc, 0, np.where(cka < own, 1, 2))


def _resampled(m: MeasuredGrid, name: str, random: np.random.Generator) -> Numbers:
    """Bootstrap (draws, n) of the cell means over dense seeds, with unbiased variance."""
    seeds, mean = m.seeds(name), m.mean(name)
    count = seeds.shape[1]
    if count < 3:
        return mean + m.stderr(name) * random.standard_normal((POSTERIOR_DRAWS, len(mean)))
    chosen = np.random.default_rng(1).integers(0, count, (POSTERIOR_DRAWS, count))  # the same seeds for LMC and CKA
    whole = np.isfinite(seeds).all(1)
    drawn = mean + (seeds[:, chosen].mean(2).T - mean) * np.sqrt(count / (count - 1))
    stderr = m.stderr(name)
    usual = float(np.sqrt((stderr[whole] ** 2).mean())) if whole.any() else 0.0
    beside = mean + np.maximum(stderr, usual) * random.standard_normal((POSTERIOR_DRAWS, len(mean)))
    return np.where(whole, drawn, beside)
