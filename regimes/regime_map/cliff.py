"""The cliff of the barrier: cut of LMC between regime I and II, and whether there is a cliff at all.

Barriers are compared on a square-root scale, in units of the error of guessing. The cut is the
change point that minimises the variance within the two groups of cells (Otsu 1979), with a common slope along the
loads: the barrier decreases with density on both sides. Its posterior weight is the likelihood of normal groups with
one observation per four cells, since neighbours are alike, times a wide prior. Any cut within the gap between the
groups gives the same regimes.

There is a cliff if the barrier changes by enough across the border within a step, and either by much of the difference
between the two groups, or up to barriers that are large anyway. A gradual increase to small barriers is no cliff.
Without one, a cell is poorly connected if its barrier is large in itself, about a quarter of the error of guessing
(`LARGE`); all cells are, if hardly any barrier is small (`SMALL`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

NEVER = -1e3  # log density of what is not to be chosen; finite, for there may be nothing else
CUT_DRAWS = 200
OFFSET = 0.01  # of the square root, in units of the error of guessing
PRIOR_CUT, PRIOR_LOG_SPREAD = 0.15, 0.8  # of the barrier at the cut, in units of the error of guessing
SLOPES, PRIOR_SLOPE = np.linspace(-0.15, 0.15, 25), 0.05  # of the cut over the load axis, on the square-root scale
CELLS_PER_OBSERVATION = 4.0
MIN_DEVIATION = 0.02  # smallest standard deviation within a group, on the square-root scale
STEP = 0.13  # length of a step across the border, as a share of an axis; at least one cell
# Values at which a probability is one half, and their tolerances; barriers in units of the error of guessing. Along the
# loads more is asked for, since barriers increase towards the lowest densities anyway.
HEIGHT = {"knob": (0.045, 0.007), "load": (0.07, 0.008)}  # change of the barrier across the border within a step
SHARPNESS = {"knob": (1.2, 0.1), "load": (1.8, 0.1)}  # that change over the one of an even slope between the groups
TALL = (0.25, 0.03)  # mean barrier beyond the border
CONNECTED = (0.22, 0.03)  # mean barrier on the connected side, which is smaller
COHERENCE = (0.3, 0.05)  # of the two sides, see `_coherence`
LARGE = (0.25, 0.04)  # barrier above which a cell counts as poorly connected where there is no cliff
SMALL, SMALL_SHARE = (0.16, 0.02), 0.1  # if at most this share of the cells is below, all cells are beyond the cliff


@dataclass(frozen=True)
class Cliff:
    """The border of regime I.

    Attributes:
        cuts: (draws,) posterior draws of the cut at the middle of the load axes, on the square-root scale of LMC: of
            the cliff in a share ``seen`` of the draws, else of `LARGE`, or above all cells.
        slopes: (draws,) their slopes over the mean load coordinate.
        seen: probability that the grid has a cliff.
        cut: median cut of the cliff, on that scale.
        note: how the cut was found, for reports.
    """

    cuts: Numbers
    slopes: Numbers
    seen: float
    cut: float
    note: str

    def cuts_at(self, m: MeasuredGrid, places: Numbers) -> Numbers:
        """Return the cuts (draws, m) at coordinates (m, k), on the transformed scale of LMC."""
        cuts = self.cuts[:, None] + self.slopes[:, None] * (_load(m, places) - 0.5)
        return m.transform("lmc").forward(_lmc(cuts) * m.guess)

    def probability(self, m: MeasuredGrid, places: Numbers) -> Numbers:
        """Return the probability (m,) of regime I at coordinates (m, k)."""
        mean, spread = m.predicted("lmc") if places is m.places else m.surface("lmc").predict(places)
        return np.asarray(ndtr((self.cuts_at(m, places) - mean) / spread).mean(0))

    def connected(self, m: MeasuredGrid, places: Numbers, lmc: Numbers) -> NDArray[np.bool_]:
        """Return whether candidates are connected (draws, m), given draws (draws, m) of their transformed LMC."""
        return lmc >= self.cuts_at(m, places)[np.arange(len(lmc)) % len(self.cuts)]

    def middle(self, m: MeasuredGrid) -> float:
        """Return the median cut of the cliff at the middle of the load axes, as LMC."""
        return float(_lmc(np.array(self.cut))) * m.guess * m.scale


def find_cliff(m: MeasuredGrid, given: float | None = None) -> Cliff:
    """Find the cliff of a grid with usable cells; ``given`` is a cut of LMC to use instead."""
    scale = m.transform("lmc")
    if given is not None:
        fixed = _root(np.array([given / m.guess]))
        return Cliff(fixed, np.zeros(1), 1.0, float(fixed[0]), f"LMC cut {given * m.scale:g}: given")
    mean, _ = m.predicted("lmc")
    load = _load(m, m.places)
    lmc = scale.inverse(mean) / m.guess
    random = np.random.default_rng(0)
    if m.usable.sum() > 1:
        cuts, slopes = _sample_cuts(_root(lmc)[m.usable], load[m.usable], random)
    else:
        cuts, slopes = _root(np.array([-PRIOR_CUT])), np.zeros(1)
    barrier = np.clip(-lmc, 0, None)
    below = _root(lmc) < np.median(cuts) + np.median(slopes) * (load - 0.5)
    fall, seen = _cliff_evidence(m, _sharper(m, barrier), below)
    beyond = _probability(float(np.quantile(barrier[m.usable], SMALL_SHARE)), SMALL)
    cut, note = float(np.median(cuts)), _note(m, cuts, barrier, fall, seen, beyond)
    cliff = random.permutation(np.arange(CUT_DRAWS) < round(seen * CUT_DRAWS))
    large = _root(-np.clip(random.logistic(*LARGE, CUT_DRAWS), 0, None))
    cuts = np.where(cliff, cuts, np.where(random.random(CUT_DRAWS) < beyond, 1.0, large))
    return Cliff(cuts, np.where(cliff, slopes, 0.0), seen, cut, note)


def _sharper(m: MeasuredGrid, barrier: Numbers) -> Numbers:
    """Barriers (n,) of the surface, weighted with the cell means in a share (s - 1)/(s + 1) for s dense seeds per cell.

    The surface smooths a cliff out; the means of single seeds would show one wherever noise is.
    """
    seeds = float(np.isfinite(m.seeds("lmc")).sum(1)[m.measured("lmc")].mean())
    share = (seeds - 1) / (seeds + 1)
    means = np.clip(-m.mean("lmc") / m.guess, 0, None)
    return np.where(m.measured("lmc"), (1 - share) * barrier + share * means, barrier)


def _sample_cuts(values: Numbers, load: Numbers, random: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Posterior draws of cut and slope: a slope, a gap between two neighbouring values, and a point in the gap."""
    count = len(values)
    below = np.arange(1, count)
    rest = np.sort(values - SLOPES[:, None] * (load - 0.5), axis=1)  # (slopes, cells)
    lower, total = np.cumsum(rest, axis=1)[:, :-1], rest.sum(1, keepdims=True)
    within = (rest**2).sum(1, keepdims=True) - lower**2 / below - (total - lower) ** 2 / (count - below)
    gap, middle = np.diff(rest, axis=1), (rest[:, 1:] + rest[:, :-1]) / 2
    weight = -0.5 * count / CELLS_PER_OBSERVATION * np.log(np.clip(within, 0, None) / count + MIN_DEVIATION**2)
    weight += np.log(np.maximum(gap, 1e-12)) + _log_prior(middle) - 0.5 * (SLOPES[:, None] / PRIOR_SLOPE) ** 2
    weight = np.exp(weight - weight.max())
    chosen = random.choice(weight.size, CUT_DRAWS, p=weight.reshape(-1) / weight.sum())
    slope, place = np.unravel_index(chosen, weight.shape)
    return rest[slope, place] + gap[slope, place] * random.random(CUT_DRAWS), SLOPES[slope]


def _root(lmc: Numbers) -> Numbers:
    """Square-root scale ``sign(x) (sqrt(|x| + a) - sqrt(a))`` of LMC in units of the error of guessing."""
    return np.sign(lmc) * (np.sqrt(np.abs(lmc) + OFFSET) - np.sqrt(OFFSET))


def _lmc(root: Numbers) -> Numbers:
    """Inverse of `_root`."""
    return np.sign(root) * ((np.abs(root) + np.sqrt(OFFSET)) ** 2 - OFFSET)


def _log_prior(cut: Numbers) -> Numbers:
    """Log prior density of cuts on the square-root scale; `NEVER` for positive LMC."""
    root, barrier = np.abs(cut) + np.sqrt(OFFSET), np.clip(np.abs(_lmc(cut)), 1e-12, None)
    density = -0.5 * (np.log(barrier / PRIOR_CUT) / PRIOR_LOG_SPREAD) ** 2 + np.log(root / barrier)
    return np.where(cut < 0, density, NEVER)


def _cliff_evidence(m: MeasuredGrid, barrier: Numbers, beyond: NDArray[np.bool_]) -> tuple[float, float]:
    """Fall of the barrier across the border within a step, and probability of a cliff.

    The fall is the upper quartile over the cells beyond the border that are within a step of it, in the direction of
    the knobs or of the loads, whichever shows the cliff more clearly.
    """
    barrier, beyond = barrier.reshape(m.shape), beyond.reshape(m.shape)
    if beyond.all() or not beyond.any():
        return 0.0, 0.0
    high, low = float(barrier[beyond].mean()), float(barrier[~beyond].mean())
    connected = 1 - _probability(low, CONNECTED)
    tall = _probability(high, TALL)
    whole = _probability(_coherence(beyond), COHERENCE)
    knobs, found = len(m.knobs), []
    for kind, axes in (("knob", range(knobs)), ("load", range(knobs, barrier.ndim))):
        fall, even = _fall(barrier, beyond, axes)
        least, tolerance = SHARPNESS[kind]
        attainable = min(least, 0.8 / even)  # along short axes even a jump is not much steeper than a slope
        sharp = _probability(fall / max((high - low) * even, 1e-9), (attainable, tolerance))
        found.append((_probability(fall, HEIGHT[kind]) * max(sharp, tall), fall))
    seen, fall = max(found)
    return fall, seen * connected * whole


def _coherence(beyond: NDArray[np.bool_]) -> float:
    """One minus the share of neighbours on different sides, relative to sides drawn at random: 0 random, 1 at most."""
    crossing = [np.diff(beyond, axis=axis).reshape(-1) for axis in range(beyond.ndim)]
    share = float(beyond.mean())
    return 1 - float(np.concatenate(crossing).mean()) / (2 * share * (1 - share))


def _fall(barrier: Numbers, beyond: NDArray[np.bool_], axes: range) -> tuple[float, float]:
    """Upper quartile of the falls along some axes, and the share of an even slope that a step covers."""
    falls, steps = np.full(barrier.shape, np.nan), []
    for axis in axes:
        size = barrier.shape[axis]
        step = max(1, round(STEP * (size - 1)))
        if size <= step:
            continue
        values, side, far = (np.moveaxis(array, axis, 0) for array in (barrier, beyond, falls))
        change = np.where(side[step:] != side[:-step], np.abs(values[step:] - values[:-step]), np.nan)
        for part in (slice(step, None), slice(None, -step)):
            far[part] = np.fmax(far[part], change)
        steps.append(2 * step / (size - 1))
    there = falls[beyond & np.isfinite(falls)]
    return (float(np.quantile(there, 0.75)), float(np.mean(steps))) if len(there) else (0.0, 1.0)


def _probability(value: float, limit: tuple[float, float]) -> float:
    return float(expit((value - limit[0]) / limit[1]))


def _load(m: MeasuredGrid, places: Numbers) -> Numbers:
    """Mean coordinate (m,) over the load axes."""
    return m.load_coordinates(places).mean(-1)


def _note(m: MeasuredGrid, cuts: Numbers, barrier: Numbers, fall: float, seen: float, beyond: float) -> str:
    unit = m.guess * m.scale
    if seen >= 0.5:
        low, middle, high = (_lmc(np.quantile(cuts, [0.9, 0.5, 0.1])) * unit).tolist()
        return (
            f"LMC cut {middle:.3g} (80 % interval {high:.3g} to {low:.3g}) at medium load: the barrier falls by "
            f"{fall * unit:.2g} within a step across the border (probability of a cliff {seen:.2f})"
        )
    largest = float(np.quantile(barrier[m.usable], 0.95)) * unit
    where = (
        "everywhere, since hardly any is small" if beyond >= 0.5 else f"where one is above about {LARGE[0] * unit:.2g}"
    )
    seldom = f"probability {seen:.2f}, 95 % of the barriers are below {largest:.2g}"
    return f"no cliff of the barrier is seen ({seldom}), so I is {where}"
