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
import xarray as xr

Cells = Mapping[str, xr.DataArray]  # {"lmc": ..., "cka": ...} over (knobs..., density)

FLOOR = 0.005  # of training error: the noise of LMC is never taken for less than half a percent
CLOSE = 0.005  # CKA beyond 0.995 is not told apart
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


def separation(means: Cells, stderr: Cells, given: Mapping[str, float]) -> Cuts:
    """Find both cuts on cell means.

    Args:
        means: "lmc" and "cka", cell means over (knobs..., density), NaN where not measured.
        stderr: the standard errors of those means.
        given: cuts that the user fixes: {"lmc": ..., "cka": ...}; they are taken as they are.
    """
    lmc, cka = means["lmc"], means["cka"]
    noise_lmc = max(_typical(stderr["lmc"].values[(lmc >= lmc.median()).values]), FLOOR)
    notes = []
    if "lmc" in given:
        lmc_cut = given["lmc"]
        notes.append(f"LMC cut {lmc_cut:g}: given")
    else:
        lmc_cut, note = lmc_split(lmc.values[np.isfinite(lmc.values)], noise_lmc)
        notes.append(note)
    densities = lmc["density"].values
    if "cka" in given:
        notes.append(f"CKA cut {given['cka']:g}: given")
        return Cuts(lmc_cut, {float(d): given["cka"] for d in densities}, noise_lmc, notes)
    connected = ((lmc >= lmc_cut) & np.isfinite(cka)).values
    density = cka["density"].broadcast_like(cka).values
    cuts, note = cka_split(cka.values[connected], stderr["cka"].values[connected], density[connected], densities)
    return Cuts(lmc_cut, cuts, noise_lmc, [*notes, note])


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
    cka: np.ndarray, stderr: np.ndarray, density: np.ndarray, densities: np.ndarray
) -> tuple[dict[float, float], str]:
    """Return the CKA cut at each density, and how it was found."""
    one = {float(each): CONVENTION for each in densities}
    if len(cka) < 4:
        return one, f"CKA cut {CONVENTION:g}: a convention, fewer than four connected cells"
    y, x = _stretch(cka), np.log10(density)
    noise = max(_typical(stderr / np.clip(1 - cka, CLOSE, None) / np.log(10)), STRETCHED_FLOOR)
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


def _stretch(cka: np.ndarray) -> np.ndarray:
    return -np.log10(np.clip(1 - cka, CLOSE, None))


def _two_lines(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Split y into two groups around parallel lines; returns slope, offset of the cut, deviation between the groups."""
    steepest = max(0.0, float(np.polyfit(x, y, 1)[0])) if np.ptp(x) > 0 else 0.0
    best = (np.inf, 0.0, 0.0, 0.0)
    for slope in np.linspace(0.0, 2 * steepest, 41):
        rest = np.sort(y - slope * x)
        count = np.arange(1, len(rest))
        low = np.cumsum(rest)[:-1] / count
        high = (rest.sum() - np.cumsum(rest)[:-1]) / (len(rest) - count)
        between = count * (len(rest) - count) / len(rest) * (high - low) ** 2
        if len(rest) > 4:
            between[[0, -1]] = 0.0  # a group of one cell is an outlier
        place = int(np.argmax(between))
        within = float(((rest - rest.mean()) ** 2).sum() - between[place])
        if within < best[0] - 1e-12:
            deviation = float(np.sqrt(between[place] / len(rest)))
            best = (within, float(slope), float((rest[place] + rest[place + 1]) / 2), deviation)
    return best[1:]
