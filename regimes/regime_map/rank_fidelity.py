"""Which densities rank training settings as the full network does: the rungs that a search may trust."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from regimes.errors import UserError
from regimes.regime_map.axes import position
from regimes.regime_map.landscape_rules import Classification, regimes_at
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.results import DensityTrust

SHARE = 0.7  # of the ceiling that a trusted density reaches
PRIOR_SPREAD = 0.3  # of tau about what the regimes let expect
LEAST_SPREAD = 0.1  # of a measured tau: a handful of temperatures is ranked coarsely
DRAWS = 400
FEW = 4  # temperatures that a ranking needs


def rungs(
    m: MeasuredGrid, verdict: Classification, densities: Sequence[float] | None, load: dict[str, float]
) -> list[DensityTrust]:
    """Judge densities, sparsest first.

    ``trust(d)`` is Kendall's tau along the temperature between the test error at density d and that of dense networks,
    relative to the tau of dense networks of two seeds with each other. Errors of one seed are held against those of
    another, on both sides, so that what two networks share by chance does not count. The regimes are the prior (tau to
    expect: the ceiling times the share of temperatures that are connected, +- 0.3); the measured tau decides, weighted
    by its bootstrap over dense seeds. Between measured densities tau is interpolated in log density.

    Args:
        m, verdict: the grid and its cuts.
        densities: to judge; None: the measured ones.
        load: {"width": ...} where it varies.

    Raises:
        UserError: fewer than four temperatures; a load that is no measured width.
        OutsideRange: a density beyond the measured ones.
    """
    _check_load(m, load)
    count = int(np.prod(m.shape[: len(m.knobs)]))
    if count < FEW:
        raise UserError(f"{count} temperatures cannot be ranked; a trust needs {FEW} or more")
    own = m.axes[-1].values
    asked = sorted(own if densities is None else set(densities))
    marks = [float(m.axes[-1].place(each)) for each in asked]
    whole, pruned = _errors(m, load)
    ceiling = _ceiling(whole)
    measured = None if pruned is None or whole is None else np.array([_tau(whole, each) for each in pruned])
    found = []
    for density, mark in zip(asked, marks, strict=True):
        connected = _connected(m, verdict, {**load, "density": density})
        tau = None
        if measured is not None:
            tau = np.array([np.nan])  # too few temperatures at each density
        if measured is not None and np.isfinite(measured[:, 0]).any():
            places = m.axes[-1].place(np.array(own))
            there = np.isfinite(measured[:, 0])
            tau = np.array([np.interp(mark, places[there], each[there], np.nan, np.nan) for each in measured.T])
        found.append(_judged(density, connected, tau, ceiling))
    return found


def _check_load(m: MeasuredGrid, load: Mapping[str, float]) -> None:
    widths = next((axis.values for axis in m.axes if axis.name == "width"), ())
    measured = ", ".join(f"{each:g}" for each in widths)
    for name, value in load.items():
        if name != "width" or value not in widths:
            allowed = f"width={measured}" if widths else "nothing, for this grid"
            raise UserError(f"rungs at {name}={value:g}: all temperatures are ranked together; allowed: {allowed}")
    if widths and not load:
        raise UserError(f"where on width? Say it with --at width=VALUE; measured: {measured}")


def _errors(m: MeasuredGrid, load: dict[str, float]) -> tuple[Numbers | None, Numbers | None]:
    """Dense test errors (temperatures, seeds), and pruned ones (densities, temperatures, seeds), where known."""
    if "test_error" not in m.data or "dense_test_error" not in m.data:
        return None, None
    chosen = m.data.sel(load) if load and "width" in m.data.dims else m.data
    knobs = m.knobs

    def arranged(name: str, *more: str) -> Numbers:
        values = chosen[name]
        values = values.expand_dims(dense_seed=[0]) if "dense_seed" not in values.dims else values
        inside = [dim for dim in values.dims if dim not in (*knobs, *more, "dense_seed")]
        ordered = values.mean(inside).transpose(*more, *knobs, "dense_seed").values
        return np.asarray(ordered.reshape(*ordered.shape[: len(more)], -1, ordered.shape[-1]))

    return arranged("dense_test_error"), arranged("test_error", "density")


def _tau(a: Numbers, b: Numbers) -> Numbers:
    """Kendall's tau (1 + draws,) of a's seeds with b's, the first as measured, then over seeds drawn anew.

    Over pairs of different seeds; with one seed, that with itself.
    """
    count = a.shape[1]
    table = np.array([[_kendall(a[:, i], b[:, j]) for j in range(count)] for i in range(count)])
    if count > 1:
        table[np.diag_indices(count)] = np.nan
    drawn = np.random.default_rng(0).integers(0, count, (DRAWS, count))
    draws = [np.arange(count), *drawn] if count > 2 else [np.arange(count)]
    return np.array([_mean(table[np.ix_(each, each)]) for each in draws] + [np.nan] * (1 + DRAWS - len(draws)))


def _mean(table: Numbers) -> float:
    return float(np.nanmean(table)) if np.isfinite(table).any() else float("nan")


def _kendall(x: Numbers, y: Numbers) -> float:
    from scipy.stats import kendalltau  # slow to import: not for those who ask for no trust

    both = np.isfinite(x) & np.isfinite(y)
    return float(kendalltau(x[both], y[both]).statistic) if both.sum() >= FEW else float("nan")


def _ceiling(whole: Numbers | None) -> float | None:
    if whole is None or whole.shape[1] < 2:
        return None
    pairs = [_kendall(whole[:, i], whole[:, j]) for i, j in itertools.combinations(range(whole.shape[1]), 2)]
    found = _mean(np.array(pairs))
    return found if np.isfinite(found) else None


def _connected(m: MeasuredGrid, verdict: Classification, load: dict[str, float]) -> float:
    """Share of the temperatures that are connected at a load."""
    knobs = [axis.name for axis in m.axes[: len(m.knobs)]]
    every = itertools.product(*(axis.values for axis in m.axes[: len(m.knobs)]))
    places = np.stack([position(m.axes, {**dict(zip(knobs, each, strict=True)), **load}) for each in every])
    assert verdict.unsure is not None
    return float(1 - regimes_at(m, verdict.unsure, places, np.full(len(places), load["density"]))[:, 0].mean())


def _judged(density: float, connected: float, tau: NDArray[np.float64] | None, ceiling: float | None) -> DensityTrust:
    known = tau is not None and np.isfinite(tau[0])
    if ceiling is not None and not ceiling > LEAST_SPREAD:
        reason = f"two seeds of the dense network do not rank the temperatures alike themselves (tau {ceiling:.2f})"
        value = float(tau[0]) if tau is not None and known else None
        return DensityTrust(density, value, None, None, ceiling, 0.0, 0.0, False, reason)
    most = 1.0 if ceiling is None else ceiling
    prior = most * connected
    mean, variance = prior, PRIOR_SPREAD**2
    low = high = None
    if tau is not None and known:
        drawn = tau[1:][np.isfinite(tau[1:])]
        spread = max(float(drawn.std()), LEAST_SPREAD) if len(drawn) else PRIOR_SPREAD
        if len(drawn):
            low, high = (float(each) for each in np.quantile(drawn, [0.025, 0.975]))
        variance = 1 / (1 / PRIOR_SPREAD**2 + 1 / spread**2)
        mean = variance * (prior / PRIOR_SPREAD**2 + float(tau[0]) / spread**2)
    enough = float(ndtr((mean - SHARE * most) / np.sqrt(variance)))
    bound = "not known how much seeds agree" if ceiling is None else f"two seeds of the dense network {most:.2f}"
    unknown = "no test errors" if tau is None else "test errors of too few temperatures"
    said = f"tau {float(tau[0]):.2f}, {bound}" if tau is not None and known else unknown
    reason = f"{said}; {connected:.0%} of the temperatures are connected"
    value = float(tau[0]) if tau is not None and known else None
    return DensityTrust(density, value, low, high, ceiling, prior, mean / most, enough >= 0.5, reason)
