"""Thresholds ("cuts") of LMC and CKA, found in the data; the three-regime study sets them by hand.

*Connected or not.* LMC is about 0 for connected pairs. A cell is beyond the noise if its mean is more than z standard
errors below 0, with z such that any cell of a grid without barriers exceeds it with probability 5 %. The cut is the
midpoint, on the scale ``asinh(LMC / noise)`` (linear within the noise, logarithmic beyond), of the gap between the
lowest cell within the noise and the highest cell beyond it.

*Similar or not.* Only among connected cells. CKA increases with density along the border itself, so the cut depends on
density: ``y = -log10(1 - CKA)`` is split into two groups with a common slope, ``y = a_k + b log10 d``, b >= 0, that
minimise the variance within the groups. The split is accepted if the standard deviation between the groups exceeds
twice the standard error of a cell; otherwise a conventional cut is used. A smooth gradient beyond the noise is also
split, in its middle: a border through a continuum is a convention.

The standard errors treat cells as independent, although cells with the same seed see the data in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.transforms import transform_of

CKA_NOISE_FLOOR = 0.05  # smallest noise of -log10(1 - CKA): 12 % of the distance from 1
DEFAULT_CKA_CUT = 0.9  # conventional cut, used if connected cells do not form two groups
FALSE_ALARM_RATE = 0.05  # probability of seeing a barrier in a grid without any


@dataclass(frozen=True)
class Cuts:
    """Thresholds and how they were found.

    Attributes:
        lmc: cells with a lower LMC are poorly connected.
        cka: {density: cut}; connected cells with a lower CKA are dissimilar.
        noise_lmc: standard error of a connected cell's mean LMC, see `MeasuredGrid.noise_lmc`.
        notes: how each cut was found, for reports.
    """

    lmc: float
    cka: dict[float, float]
    noise_lmc: float
    notes: list[str] = field(default_factory=list)


def cuts_of_grid(m: MeasuredGrid, given: Mapping[str, float]) -> Cuts:
    """Find both cuts on the cell means of a grid; cuts in ``given``, {"lmc": ..., "cka": ...}, are used as they are."""
    return find_cuts(m, given, m.mean("lmc"), m.mean("cka"))


def find_cuts(m: MeasuredGrid, given: Mapping[str, float], lmc: Numbers, cka: Numbers) -> Cuts:
    """Find both cuts on other cell means (n,), such as resampled ones, with the noise of the grid."""
    usable, noise, notes = m.usable, m.noise_lmc, []
    if "lmc" in given:
        lmc_cut = given["lmc"]
        notes.append(f"LMC cut {lmc_cut:g}: given")
    elif not usable.any():
        lmc_cut = -noise
        notes.append(f"LMC cut {lmc_cut:.3g}: a convention, there is no usable cell")
    else:
        lmc_cut, note = lmc_split(lmc[usable], noise)
        notes.append(note)
    densities = np.array(m.density_axis.values)
    if "cka" in given:
        notes.append(f"CKA cut {given['cka']:g}: given")
        return Cuts(lmc_cut, {float(d): given["cka"] for d in densities}, noise, notes)
    connected = usable & (lmc >= lmc_cut)
    cuts, note = cka_split(cka[connected], m.noise_cka[connected], m.density[connected], densities)
    return Cuts(lmc_cut, cuts, noise, [*notes, note])


def _typical(stderr: np.ndarray) -> float:
    return float(np.sqrt(np.mean(stderr**2))) if len(stderr) else 0.0


def lmc_split(lmc: np.ndarray, noise: float) -> tuple[float, str]:
    """Return the cut between poorly connected and connected values of LMC, and how it was found."""
    z = NormalDist().inv_cdf(1 - FALSE_ALARM_RATE / len(lmc))
    edge = -z * noise
    about = f"{z:.1f} standard errors ({noise:.2g})"
    beyond, within = lmc[lmc < edge], lmc[lmc >= edge]
    if not len(beyond):
        return edge, f"LMC cut {edge:.3g}: no cell is more than {about} below 0, no barrier is seen"
    if not len(within):
        return edge, f"LMC cut {edge:.3g}: every cell is more than {about} below 0, none is connected"
    ends = np.arcsinh(np.array([beyond.max(), within.min()]) / noise)
    cut = float(np.sinh(ends.mean()) * noise)
    return cut, f"LMC cut {cut:.3g}: in the gap between {beyond.max():.3g} and {within.min():.3g}, beyond {about}"


def cka_split(
    cka: np.ndarray, spread: np.ndarray, density: np.ndarray, densities: np.ndarray
) -> tuple[dict[float, float], str]:
    """Return the CKA cut at each density, and how it was found.

    Args:
        cka, spread, density: of the connected cells; ``spread`` is the standard error of -log10(1 - CKA).
        densities: the densities to return cuts for.
    """
    one = {float(each): DEFAULT_CKA_CUT for each in densities}
    if len(cka) < 4:
        return one, f"CKA cut {DEFAULT_CKA_CUT:g}: a convention, fewer than four connected cells"
    y, x = transform_of("cka", 1.0).forward(cka), np.log10(density)
    noise = max(_typical(spread), CKA_NOISE_FLOOR)
    slope, offset, between = _two_lines(x, y)
    if not between > 2 * noise:
        return (
            one,
            f"CKA cut {DEFAULT_CKA_CUT:g}: a convention, connected cells do not form two groups beyond the noise",
        )
    cuts = {float(d): float(np.clip(1 - 10.0 ** -(offset + slope * np.log10(d)), 0, 1)) for d in densities}
    ends = [f"{cuts[float(each)]:.6g} at density {each:g}" for each in (densities.min(), densities.max())]
    how = f"best split into two groups with a common slope, {between / noise:.1f} times the noise apart"
    return cuts, f"CKA cut from {' to '.join(ends)}: {how}"


def _two_lines(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Split y into two groups around parallel lines: slope, offset of the cut, standard deviation between groups."""
    steepest = max(0.0, float(np.polyfit(x, y, 1)[0])) if np.ptp(x) > 0 else 0.0
    slopes = np.linspace(0.0, 2 * steepest, 41)
    rest = np.sort(y - slopes[:, None] * x, axis=1)  # (slopes, cells)
    size, total = rest.shape[1], rest.sum(1, keepdims=True)
    count, below = np.arange(1, size), np.cumsum(rest, axis=1)[:, :-1]
    between = count * (size - count) / size * ((total - below) / (size - count) - below / count) ** 2
    if size > 4:
        between[:, [0, -1]] = 0.0  # a single cell is an outlier, not a group
    within = ((rest - rest.mean(1, keepdims=True)) ** 2).sum(1) - between.max(1)
    best = int(np.argmax(within <= within.min() + 1e-12))
    place = int(np.argmax(between[best]))
    cut = float((rest[best, place] + rest[best, place + 1]) / 2)
    return float(slopes[best]), cut, float(np.sqrt(between[best, place] / size))
