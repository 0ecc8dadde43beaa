"""Rank fidelity: do pruned networks of a density rank training settings as dense networks do?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from regimes.errors import UserError
from regimes.regime_map.axes import position
from regimes.regime_map.classification import Regions
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.results import DensityTrust

MIN_TRUST = 0.7  # share of the ceiling that a trusted density reaches
PRIOR_SPREAD = 0.3  # standard deviation of tau around its prior mean
MIN_TAU_SPREAD = 0.1  # smallest standard deviation of a measured tau: few temperatures rank coarsely
BOOTSTRAP_DRAWS = 400
MIN_TEMPERATURES = 4  # needed for a ranking


def rungs(regions: Regions, densities: Sequence[float] | None, load: dict[str, float]) -> list[DensityTrust]:
    """Return the rank fidelity of densities, lowest density first.

    The measure is Kendall's tau over temperatures between the errors at a density and those of dense networks, on the
    validation split if the grid has its errors, as in searches, else on the test split. The
    ceiling is tau between dense networks of two seeds. Both compare different seeds only (unless there is just one), so
    that errors common to the networks of one seed do not count. The prior of tau is normal: its mean is the ceiling
    times the share of temperatures that are connected, its standard deviation 0.3. It is combined with the measured
    tau, weighted by the bootstrap variance over dense seeds. Between measured densities tau is interpolated along the
    density axis.

    Args:
        regions: the regions of a classified grid.
        densities: the densities to evaluate; None for the measured ones.
        load: {"width": ...} if the width varies.

    Raises:
        UserError: there are fewer than four temperatures; the load is not a measured width.
        OutsideRange: a density is outside the measured range.
    """
    m = regions.grid
    _check_load(m, load)
    count = int(np.prod(m.shape[: len(m.knobs)]))
    if count < MIN_TEMPERATURES:
        raise UserError(f"too few temperatures to rank: {count}; needed: {MIN_TEMPERATURES} or more")
    axis = m.density_axis
    if axis is None:
        raise UserError("densities are ranked, and this grid has none")
    own = axis.values
    chosen = sorted(own if densities is None else set(densities))
    marks = [float(axis.place(each)) for each in chosen]
    whole, pruned = _errors(m, load)
    ceiling = _ceiling(whole)
    measured = None if pruned is None or whole is None else np.array([_tau(whole, each) for each in pruned])
    found = []
    for density, mark in zip(chosen, marks, strict=True):
        connected = _connected(regions, {**load, "density": density})
        tau = None
        if measured is not None:
            tau = np.array([np.nan])  # overwritten if any density has enough temperatures
        if measured is not None and np.isfinite(measured[:, 0]).any():
            places = axis.place(np.array(own))
            there = np.isfinite(measured[:, 0])
            tau = np.array([np.interp(mark, places[there], each[there], np.nan, np.nan) for each in measured.T])
        found.append(_judged(density, connected, tau, ceiling, "validation" if _split(m) == "val" else "test"))
    return found


def _check_load(m: MeasuredGrid, load: Mapping[str, float]) -> None:
    widths = next((axis.values for axis in m.axes if axis.name == "width"), ())
    measured = ", ".join(f"{each:g}" for each in widths)
    for name, value in load.items():
        if name != "width" or value not in widths:
            allowed = f"width={measured}" if widths else "nothing, for this grid"
            raise UserError(f"{name}={value:g} cannot be set: all temperatures are ranked together; allowed: {allowed}")
    if widths and not load:
        raise UserError(f"missing value for width; pass --at width=VALUE; measured: {measured}")


def _errors(m: MeasuredGrid, load: dict[str, float]) -> tuple[Numbers | None, Numbers | None]:
    """Dense errors (temperatures, seeds) and pruned ones (densities, temperatures, seeds); None if unknown."""
    split = _split(m)
    if split is None:
        return None, None
    chosen = m.data.sel(load) if load and "width" in m.data.dims else m.data
    knobs = m.knobs

    def arranged(name: str, *more: str) -> Numbers:
        values = chosen[name]
        values = values.expand_dims(dense_seed=[0]) if "dense_seed" not in values.dims else values
        inside = [dim for dim in values.dims if dim not in (*knobs, *more, "dense_seed")]
        ordered = values.mean(inside).transpose(*more, *knobs, "dense_seed").values
        return np.asarray(ordered.reshape(*ordered.shape[: len(more)], -1, ordered.shape[-1]))

    return arranged(f"dense_{split}_error"), arranged(f"{split}_error", "density")


def _split(m: MeasuredGrid) -> str | None:
    """Split whose errors rank: validation, as searches use it, if the grid has it, else test; None without errors."""
    return next((split for split in ("val", "test") if {f"{split}_error", f"dense_{split}_error"} <= set(m.data)), None)


def _tau(a: Numbers, b: Numbers) -> Numbers:
    """Kendall's tau (1 + draws,) between the seeds of a and those of b: as measured, then bootstrapped over seeds.

    Averaged over pairs of different seeds; with one seed, of that seed with itself.
    """
    count = a.shape[1]
    table = np.array([[_kendall(a[:, i], b[:, j]) for j in range(count)] for i in range(count)])
    if count > 1:
        table[np.diag_indices(count)] = np.nan
    drawn = np.random.default_rng(0).integers(0, count, (BOOTSTRAP_DRAWS, count))
    draws = [np.arange(count), *drawn] if count > 2 else [np.arange(count)]
    missing = [np.nan] * (1 + BOOTSTRAP_DRAWS - len(draws))
    return np.array([_mean(table[np.ix_(each, each)]) for each in draws] + missing)


def _mean(table: Numbers) -> float:
    return float(np.nanmean(table)) if np.isfinite(table).any() else float("nan")


def _kendall(x: Numbers, y: Numbers) -> float:
    from scipy.stats import kendalltau  # slow to import

    both = np.isfinite(x) & np.isfinite(y)
    return float(kendalltau(x[both], y[both]).statistic) if both.sum() >= MIN_TEMPERATURES else float("nan")


def _ceiling(whole: Numbers | None) -> float | None:
    if whole is None or whole.shape[1] < 2:
        return None
    pairs = [_kendall(whole[:, i], whole[:, j]) for i, j in itertools.combinations(range(whole.shape[1]), 2)]
    found = _mean(np.array(pairs))
    return found if np.isfinite(found) else None


def _connected(regions: Regions, load: dict[str, float]) -> float:
    """Expected share of the temperatures that are connected at a load."""
    m = regions.grid
    knobs = [axis.name for axis in m.knob_axes]
    every = itertools.product(*(axis.values for axis in m.knob_axes))
    places = np.stack([position(m.axes, {**dict(zip(knobs, each, strict=True)), **load}) for each in every])
    return float(1 - regions.cliff.probability(m, places).mean())


def _judged(
    density: float, connected: float, tau: NDArray[np.float64] | None, ceiling: float | None, split: str
) -> DensityTrust:
    known = tau is not None and np.isfinite(tau[0])
    if ceiling is not None and not ceiling > MIN_TAU_SPREAD:
        reason = f"dense networks of two seeds do not rank the temperatures alike (tau {ceiling:.2f})"
        value = float(tau[0]) if tau is not None and known else None
        return DensityTrust(density, value, None, None, ceiling, 0.0, 0.0, False, reason)
    most = 1.0 if ceiling is None else ceiling
    prior = most * connected
    mean, variance = prior, PRIOR_SPREAD**2
    low = high = None
    if tau is not None and known:
        drawn = tau[1:][np.isfinite(tau[1:])]
        spread = max(float(drawn.std()), MIN_TAU_SPREAD) if len(drawn) else PRIOR_SPREAD
        if len(drawn):
            low, high = (float(each) for each in np.quantile(drawn, [0.025, 0.975]))
        variance = 1 / (1 / PRIOR_SPREAD**2 + 1 / spread**2)
        mean = variance * (prior / PRIOR_SPREAD**2 + float(tau[0]) / spread**2)
    enough = float(ndtr((mean - MIN_TRUST * most) / np.sqrt(variance)))
    bound = "agreement between dense seeds unknown" if ceiling is None else f"dense networks of two seeds {most:.2f}"
    unknown = "no errors" if tau is None else f"{split} errors of too few temperatures"
    said = f"tau {float(tau[0]):.2f} by {split} errors, {bound}" if tau is not None and known else unknown
    reason = f"{said}; {connected:.0%} of the temperatures are connected"
    value = float(tau[0]) if tau is not None and known else None
    return DensityTrust(density, value, low, high, ceiling, prior, mean / most, enough >= 0.5, reason)
