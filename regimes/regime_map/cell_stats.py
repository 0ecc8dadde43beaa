"""Cells of a grid: their means, how far these can be believed, and which of them tell nothing."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from regimes.record.grid import SEEDS, loads_of

CHANCE_SHARE = 0.9  # of the error of guessing: networks this bad have learnt next to nothing


def cell_mean(values: xr.DataArray, knobs: list[str]) -> xr.DataArray:
    """Average over everything but the knobs and loads: seeds, pairs, and whatever else a grid has.

    Dense seeds count alike, however many copies each has.
    """
    axes = [*knobs, *loads_of(values)]
    return seed_means(values, knobs).mean("dense_seed", skipna=True).transpose(*axes)


def seed_means(values: xr.DataArray, knobs: list[str]) -> xr.DataArray:
    """Average over everything but knobs, loads and dense seeds: (knobs..., loads..., dense_seed).

    Pairs and copies of one dense network share it, so they are one observation of what another network might show. A
    grid without dense seeds has one.
    """
    axes = [*knobs, *loads_of(values)]
    if "dense_seed" not in values.dims:
        values = values.expand_dims(dense_seed=[0])
    within = [dim for dim in values.dims if dim not in (*axes, "dense_seed")]
    return values.mean(within, skipna=True).transpose(*axes, "dense_seed")


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


def at_chance(data: xr.Dataset, knobs: list[str]) -> xr.DataArray | None:
    """Which cells hold networks that guess: mean test error of at least nine tenths of the error of guessing.

    Two such networks are connected and alike, and tell nothing about pruning. None where the grid does not say what
    guessing scores (``chance_error``), or has no test errors.
    """
    chance = data.attrs.get("chance_error")
    if chance is None or "test_error" not in data:
        return None
    return cell_mean(data["test_error"], knobs) >= CHANCE_SHARE * float(chance)


def error_scale(data: xr.Dataset) -> float:
    """What LMC is divided by before a rule sees it: 1 for fractions; where it is a loss, the median test error, so that
    regimes do not depend on the unit of the targets."""
    if "lmc" not in data or data["lmc"].attrs.get("units", "1") == "1":
        return 1.0
    alike = "test_error" in data and data["test_error"].attrs.get("units", "1") == data["lmc"].attrs["units"]
    around = data["test_error"] if alike else abs(data["lmc"])
    typical = float(around.median())
    return typical if np.isfinite(typical) and typical > 0 else 1.0


def seeds_of(data: xr.Dataset) -> dict[str, int]:
    """How many seeds and pairs stand behind a grid."""
    return {name: data.sizes[name] for name in SEEDS if name in data.sizes}
