"""The rule "separation": thresholds where the measured values themselves fall apart, never inside the seed noise.

The three-regime study draws its lines by hand. Here is what we put in their place.

*Connected or not.* LMC is about 0 for connected pairs and reaches far below for others, so it is looked at as
``asinh(LMC / noise)``, linear inside the noise and logarithmic beyond. The cut is where a split in two groups leaves
the least variance within the groups, among cuts below -2 noise whose upper group is centred on 0 within 3 noise.

*Similar or not.* Only among connected cells. CKA rises with density along the border itself, so a fixed cut cannot
work: ``y = -log10(1 - CKA)`` is split in two groups that share one slope in log density, ``y = a_k + b log10 d``, and
(b, cut) are those that leave the least variance within the groups, b >= 0.

A split is believed only where the groups' centres are further apart than twice the noise; otherwise the regime is
reported as absent.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

FLOOR = 0.005  # of training error: LMC differences below half a percent are never read as a barrier
CLOSE = 1e-4  # CKA beyond 0.9999 is not told apart
CONVENTION = 0.9  # where connected cells show no two groups: similar from here on; said to be a convention


@dataclass(frozen=True)
class Cuts:
    """Thresholds and where they come from.

    Attributes:
        lmc: cells below are poorly connected.
        cka: {density: cut}: connected cells below are dissimilar.
        noise_lmc: standard error of a cell's mean LMC.
        notes: how each cut was found, in words.
    """

    lmc: float
    cka: dict[float, float]
    noise_lmc: float
    notes: list[str] = field(default_factory=list)


def separation(lmc: xr.DataArray, cka: xr.DataArray, noise: xr.Dataset, given: dict[str, float]) -> Cuts:
    """Find both cuts on cell means.

    Args:
        lmc, cka: cell means over (knobs..., density), NaN where not measured.
        noise: ``lmc`` and ``cka``, the standard error of the cell means, as scalars.
        given: cuts that the user fixes: {"lmc": ..., "cka": ...}; they are taken as they are.
    """
    noise_lmc = max(float(noise["lmc"]), FLOOR)
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
    connected = (lmc >= lmc_cut) & np.isfinite(cka)
    spread = cka.density.broadcast_like(cka)
    cuts, note = cka_split(cka.values[connected], spread.values[connected], densities, float(noise["cka"]))
    return Cuts(lmc_cut, cuts, noise_lmc, [*notes, note])


def lmc_split(lmc: np.ndarray, noise: float) -> tuple[float, str]:
    """Return the cut between poorly connected and connected values of LMC, and how it was found."""
    scaled = np.sort(np.arcsinh(lmc / noise))
    floor = -np.arcsinh(2.0)
    if scaled[0] >= floor:
        return (
            -2 * noise,
            f"LMC cut {-2 * noise:.3g}: no cell lies below twice the noise ({noise:.2g}), no barrier is seen",
        )
    if np.median(scaled[-max(1, len(scaled) // 10) :]) < -np.arcsinh(3.0):
        return -2 * noise, f"LMC cut {-2 * noise:.3g}: every cell lies below the noise ({noise:.2g}), none is connected"
    best = (np.inf, -2 * noise)
    for low, high in itertools.pairwise(scaled):
        cut = (low + high) / 2
        below, above = scaled[scaled < cut], scaled[scaled >= cut]
        if cut > floor or not len(below) or abs(np.median(above)) > np.arcsinh(3.0):
            continue
        within = len(below) * below.var() + len(above) * above.var()
        best = min(best, (within, float(np.sinh(cut) * noise)))
    cut = best[1]
    how = "largest separation" if np.isfinite(best[0]) else "twice the noise, no clear separation"
    return cut, f"LMC cut {cut:.3g}: {how}, noise of a cell's mean {noise:.2g}"


def cka_split(
    cka: np.ndarray, density: np.ndarray, densities: np.ndarray, noise: float
) -> tuple[dict[float, float], str]:
    """Return the CKA cut at each density, and how it was found."""
    one = {float(each): CONVENTION for each in densities}
    if len(cka) < 4:
        return one, f"CKA cut {CONVENTION:g}: a convention, fewer than four connected cells"
    y, x = _stretch(cka), np.log10(density)
    slope, offset, centres = _two_lines(x, y)
    typical = float(np.median(cka))
    width = noise / max(1 - typical, CLOSE) / np.log(10)  # the noise on the stretched scale
    if centres[1] - centres[0] <= 2 * width or not np.isfinite(centres).all():
        return (
            one,
            f"CKA cut {CONVENTION:g}: a convention, connected cells show no two groups beyond the noise ({noise:.2g})",
        )
    cuts = {float(d): float(1 - 10.0 ** -(offset + slope * np.log10(d))) for d in densities}
    ends = [f"{cuts[float(each)]:.3g} at density {each:g}" for each in (densities.min(), densities.max())]
    return (
        cuts,
        f"CKA cut from {' to '.join(ends)}: largest separation with a common slope, noise of a cell's mean {noise:.2g}",
    )


def _stretch(cka: np.ndarray) -> np.ndarray:
    return -np.log10(np.clip(1 - cka, CLOSE, None))


def _two_lines(x: np.ndarray, y: np.ndarray) -> tuple[float, float, tuple[float, float]]:
    """Split y into two groups around parallel lines; returns slope, offset of the cut, the groups' mean offsets."""
    steepest = max(0.0, float(np.polyfit(x, y, 1)[0])) if np.ptp(x) > 0 else 0.0
    best = (np.inf, 0.0, 0.0, (np.nan, np.nan))
    for slope in np.linspace(0.0, 2 * steepest, 41):
        rest = np.sort(y - slope * x)
        count = np.arange(1, len(rest))
        below = np.cumsum(rest)[:-1]
        squares = np.cumsum(rest**2)[:-1]
        above = rest.sum() - below
        within = (squares - below**2 / count) + ((rest**2).sum() - squares - above**2 / (len(rest) - count))
        within[[0, -1]] += np.inf if len(rest) > 4 else 0.0  # a group of one cell is an outlier
        place = int(np.argmin(within))
        if within[place] < best[0] - 1e-12:
            centres = (below[place] / count[place], above[place] / (len(rest) - count[place]))
            best = (float(within[place]), float(slope), float((rest[place] + rest[place + 1]) / 2), centres)
    return best[1], best[2], best[3]
