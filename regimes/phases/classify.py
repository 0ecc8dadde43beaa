"""Label every cell of a grid with its regime."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.phases import RULES
from regimes.phases.separation import Cuts
from regimes.record.grid import SEEDS, check_grid, knobs_of, loads_of
from regimes.registry import load

REGIMES = {-1: "unknown", 0: "I", 1: "II-A", 2: "II-B"}
MEANING = {
    "I": "poorly connected: a barrier stands between two retrained copies",
    "II-A": "connected, outputs dissimilar",
    "II-B": "connected, outputs similar",
}


def error_scale(data: xr.Dataset) -> float:
    """What LMC is divided by before a rule sees it: 1 for fractions; where it is a loss, the median test error, so that
    regimes do not depend on the unit of the targets."""
    if "lmc" not in data or data["lmc"].attrs.get("units", "1") == "1":
        return 1.0
    around = data["test_error"] if "test_error" in data else abs(data["lmc"])
    typical = float(around.median())
    return typical if np.isfinite(typical) and typical > 0 else 1.0


def classify(
    data: xr.Dataset, rule: str = "separation", lmc: float | None = None, cka: float | None = None
) -> xr.Dataset:
    """Return the grid with ``regime`` (int8, over knobs and loads) and the cuts it rests on.

    Regime I: LMC below its cut; II-A: connected, CKA below its cut at that density; II-B: connected and similar
    (Zhou et al. 2023, arXiv 2305.18383); -1: not measured or diverged. The cuts are found in the data by the rule,
    or given. ``regime.attrs`` says how each was found, which regimes are present, and which are not.

    Args:
        data: a record, or any grid with ``lmc`` and ``cka`` over at least one knob and ``density``; other dimensions
            (seeds, pairs) are averaged over.
        rule: a name in `RULES` or an import path.
        lmc: a cut to take instead of the one in the data, at most 0.
        cka: likewise, the same at every density.

    Raises:
        UserError: a grid that cannot be used, see `check_grid`; a cut outside its range.
    """
    scale = error_scale(data)
    if lmc is not None and (lmc > 0 or (scale == 1 and lmc < -1)):
        raise UserError(f"LMC cut {lmc:g}: allowed: -1 to 0 (a barrier is negative)")
    if cka is not None and not 0 <= cka <= 1:
        raise UserError(f"CKA cut {cka:g}: allowed: 0 to 1")
    data = check_grid(data.copy(), data.attrs.get("title", "grid"))
    knobs = knobs_of(data)
    means = {name: cell_mean(data[name], knobs) for name in ("lmc", "cka")}
    noise = {name: cell_stderr(data, name, knobs) for name in ("lmc", "cka")}
    given = {name: value for name, value in (("lmc", lmc), ("cka", cka)) if value is not None}
    if scale != 1:  # rules speak of errors as fractions
        means["lmc"], noise["lmc"] = means["lmc"] / scale, noise["lmc"] / scale
        given |= {"lmc": given["lmc"] / scale} if "lmc" in given else {}
    cuts: Cuts = load(RULES, rule, "rule")(means, noise, given)
    if scale != 1:
        note = f"LMC, a loss here, is taken in units of the median test error, {scale:.4g}"
        cuts = dataclasses.replace(cuts, notes=[*cuts.notes, note])
    cka_cut = xr.DataArray([cuts.cka[float(each)] for each in data["density"].values], dims="density")
    measured = np.isfinite(means["lmc"]) & np.isfinite(means["cka"])
    labels = xr.where(means["lmc"] < cuts.lmc, 0, xr.where(means["cka"] < cka_cut, 1, 2))
    regime = xr.where(measured, labels, -1).astype(np.int8).transpose(*knobs, *loads_of(data))
    # As plain arrays: a labelled one would bring its own, bare coordinates and wipe out what they say of themselves.
    data["regime"] = (regime.dims, regime.values, _attrs(regime, cuts, rule))
    about = {"units": "1", "long_name": "CKA below which connected cells are II-A"}
    data["cka_cut"] = (("density",), cka_cut.values, about)
    return data


def cell_mean(values: xr.DataArray, knobs: list[str]) -> xr.DataArray:
    """Average over everything but the knobs and loads: seeds, pairs, and whatever else a grid has."""
    axes = [*knobs, *loads_of(values)]
    return values.mean([dim for dim in values.dims if dim not in axes], skipna=True).transpose(*axes)


def cell_stderr(data: xr.Dataset, name: str, knobs: list[str]) -> xr.DataArray:
    """Standard error of each cell's mean: the spread over seeds, or that of the images where it is larger.

    With several dense seeds it is their spread, each averaged first. With one, it is the spread over its copies or
    pairs, which knows nothing of other dense networks; the m(m-1)/2 pairs among m copies share them, and where a pair's
    value is the sum of two copies' effects, the variance of their mean is 4/m of the variance between pairs. The
    images' error (``<name>_stderr``) is shared by all pairs and does not average out. A grid that has neither gets 0.
    """
    values = data[name]
    axes = [*knobs, *loads_of(values)]
    others = [str(dim) for dim in values.dims if dim not in axes]
    if "dense_seed" in others and values.sizes["dense_seed"] > 1:
        values = values.mean([dim for dim in others if dim != "dense_seed"])
        variance = values.var("dense_seed", ddof=1) / values.notnull().sum("dense_seed")
    elif others:
        pairs = values.sizes.get("pair", 1)
        shared = pairs * 4 / _copies(pairs) if "pair" in others else 1.0
        variance = values.var(others, ddof=1) * shared / values.notnull().sum(others)
    else:
        variance = xr.zeros_like(values)
    if f"{name}_stderr" in data:
        images = (data[f"{name}_stderr"] ** 2).mean([dim for dim in data[f"{name}_stderr"].dims if dim in others])
        variance = xr.where(images > variance.fillna(0.0), images, variance)
    return (variance.fillna(0.0) ** 0.5).transpose(*axes)


def _copies(pairs: int) -> int:
    """The number m of copies where m(m-1)/2 = pairs."""
    return (1 + math.isqrt(1 + 8 * pairs)) // 2


def present(data: xr.Dataset) -> dict[str, int]:
    """How many cells each regime has, absent ones included."""
    return {name: int((data["regime"] == number).sum()) for number, name in REGIMES.items() if number >= 0}


def seeds_of(data: xr.Dataset) -> dict[str, int]:
    """How many seeds and pairs stand behind a grid."""
    return {name: data.sizes[name] for name in SEEDS if name in data.sizes}


def _attrs(regime: xr.DataArray, cuts: Cuts, rule: str) -> dict[str, object]:
    found = [name for number, name in REGIMES.items() if number >= 0 and bool((regime == number).any())]
    absent = [name for name in MEANING if name not in found]
    return {
        "long_name": "regime of pruning",
        "flag_values": np.array(list(REGIMES), dtype=np.int8),
        "flag_meanings": " ".join(REGIMES.values()),
        "rule": rule,
        "lmc_cut": cuts.lmc,
        "noise_lmc": cuts.noise_lmc,
        "thresholds": "; ".join(cuts.notes),
        "present": " ".join(found) or "none",
        "absent": " ".join(absent) or "none",
    }
