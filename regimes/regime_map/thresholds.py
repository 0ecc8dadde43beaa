"""The rule "separation": thresholds where the measured values themselves fall apart, never inside the noise.

The three-regime study draws its lines by hand. Here is what we put in their place.

*Connected or not.* LMC is about 0 for connected pairs. A cell is beyond the noise when its mean lies more than z
standard errors below 0, with z such that one of all cells would do so by chance in 5 % of grids. The cut is put in the
middle of the gap (on the scale ``asinh(LMC / noise)``, linear inside the noise and logarithmic beyond) between the
lowest cell within the noise and the highest beyond it.

*Similar or not.* Only among connected cells. CKA rises with density along the border itself, so a fixed cut cannot
work: ``y = -log10(1 - CKA)`` is split in two groups that share one slope in log density, ``y = a_k + b log10 d``,
and (b, cut) are those that leave the least variance within the groups, b >= 0. The split is believed only where the
standard deviation between the groups exceeds twice the standard error of a cell. A smooth gradient beyond the noise is
split as well, in its middle: the regimes differ by degree, and a border through a continuum is a convention.

What the data do not show is reported as absent. The standard errors take cells as independent of one another, although
cells with the same seeds see the data in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.transforms import stretch

STRETCHED_FLOOR = 0.05  # noise of log10(1 - CKA) where a grid tells none: 12 % of the distance from 1
CONVENTION = 0.9  # where connected cells show no two groups: similar from here on; said to be a convention
CHANCE = 0.05  # of grids without any barrier in which one is nevertheless seen


@dataclass(frozen=True)
class Cuts:
    """Thresholds and where they come from.

    Attributes:
        lmc: cells below are poorly connected.
        cka: {density: cut}: connected cells below are dissimilar.
        noise_lmc: standard error of a cell's mean LMC, of the better connected half (barriers scatter with their size).
        notes: how each cut was found, in words.
    """

    lmc: float
    cka: dict[float, float]
    noise_lmc: float
    notes: list[str] = field(default_factory=list)


def separation(m: MeasuredGrid, given: Mapping[str, float]) -> Cuts:
    """Find both cuts on the cell means of a grid; those ``given``, {"lmc": ..., "cka": ...}, are taken as they are."""
    return cuts_of(m, given, m.mean("lmc"), m.mean("cka"))


def cuts_of(m: MeasuredGrid, given: Mapping[str, float], lmc: Numbers, cka: Numbers) -> Cuts:
    """Find both cuts on cell means (n,) that stand for those measured, with the noise that the grid has."""
    told, noise, notes = m.told, m.noise_lmc, []
    if "lmc" in given:
        lmc_cut = given["lmc"]
        notes.append(f"LMC cut {lmc_cut:g}: given")
    elif not told.any():
        lmc_cut = -noise
        notes.append(f"LMC cut {lmc_cut:.3g}: a convention, no cell tells anything")
    else:
        lmc_cut, note = lmc_split(lmc[told], noise)
        notes.append(note)
    densities = np.array(m.axes[-1].values)
    if "cka" in given:
        notes.append(f"CKA cut {given['cka']:g}: given")
        return Cuts(lmc_cut, {float(d): given["cka"] for d in densities}, noise, notes)
    connected = told & (lmc >= lmc_cut)
    cuts, note = cka_split(cka[connected], m.noise_cka[connected], m.density[connected], densities)
    return Cuts(lmc_cut, cuts, noise, [*notes, note])


def _typical(stderr: np.ndarray) -> float:
    return float(np.sqrt(np.mean(stderr**2))) if len(stderr) else 0.0


def lmc_split(lmc: np.ndarray, noise: float) -> tuple[float, str]:
    """Return the cut between poorly connected and connected values of LMC, and how it was found."""
    z = NormalDist().inv_cdf(1 - CHANCE / len(lmc))
    edge = -z * noise
    about = f"{z:.1f} standard errors ({noise:.2g})"
    beyond, within = lmc[lmc < edge], lmc[lmc >= edge]
    if not len(beyond):
        return edge, f"LMC cut {edge:.3g}: no cell lies more than {about} below 0, no barrier is seen"
    if not len(within):
        return edge, f"LMC cut {edge:.3g}: every cell lies more than {about} below 0, none is connected"
    ends = np.arcsinh(np.array([beyond.max(), within.min()]) / noise)
    cut = float(np.sinh(ends.mean()) * noise)
    return cut, f"LMC cut {cut:.3g}: the gap between {beyond.max():.3g} and {within.min():.3g}, beyond {about}"


def cka_split(
    cka: np.ndarray, spread: np.ndarray, density: np.ndarray, densities: np.ndarray
) -> tuple[dict[float, float], str]:
    """Return the CKA cut at each density, and how it was found; ``spread`` is that of -log10(1 - CKA) by noise."""
    one = {float(each): CONVENTION for each in densities}
    if len(cka) < 4:
        return one, f"CKA cut {CONVENTION:g}: a convention, fewer than four connected cells"
    y, x = stretch("cka", 1.0).there(cka), np.log10(density)
    noise = max(_typical(spread), STRETCHED_FLOOR)
    slope, offset, between = _two_lines(x, y)
    if not between > 2 * noise:
        return (
            one,
            f"CKA cut {CONVENTION:g}: a convention, connected cells show no two groups beyond the noise",
        )
    cuts = {float(d): float(np.clip(1 - 10.0 ** -(offset + slope * np.log10(d)), 0, 1)) for d in densities}
    ends = [f"{cuts[float(each)]:.6g} at density {each:g}" for each in (densities.min(), densities.max())]
    how = f"largest separation with a common slope, {between / noise:.1f} times the noise"
    return cuts, f"CKA cut from {' to '.join(ends)}: {how}"


def _two_lines(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Split y into two groups around parallel lines; returns slope, offset of the cut, deviation between the groups."""
    steepest = max(0.0, float(np.polyfit(x, y, 1)[0])) if np.ptp(x) > 0 else 0.0
    slopes = np.linspace(0.0, 2 * steepest, 41)
    rest = np.sort(y - slopes[:, None] * x, axis=1)  # (slopes, cells)
    size, total = rest.shape[1], rest.sum(1, keepdims=True)
    count, below = np.arange(1, size), np.cumsum(rest, axis=1)[:, :-1]
    between = count * (size - count) / size * ((total - below) / (size - count) - below / count) ** 2
    if size > 4:
        between[:, [0, -1]] = 0.0  # a group of one cell is an outlier
    within = ((rest - rest.mean(1, keepdims=True)) ** 2).sum(1) - between.max(1)
    best = int(np.argmax(within <= within.min() + 1e-12))
    place = int(np.argmax(between[best]))
    cut = float((rest[best, place] + rest[best, place + 1]) / 2)
    return float(slopes[best]), cut, float(np.sqrt(between[best, place] / size))
