"""Statistics of the cells of a grid: means, standard errors, and cells at chance."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from regimes.record.grid import loads_of
from regimes.record.plain_data import SEEDS

CHANCE_SHARE = 0.9  # of the chance error; networks at or above it have learnt next to nothing


def cell_mean(values: xr.DataArray, knobs: list[str]) -> xr.DataArray:
    """Return cell means over knobs and loads; seeds, pairs and any other dimension are averaged over.

    Dense seeds have equal weight, however many copies each has.
    """
    axes = [*knobs, *loads_of(values)]
    return seed_means(values, knobs).mean("dense_seed", skipna=True).transpose(*axes)


def seed_means(values: xr.DataArray, knobs: list[str]) -> xr.DataArray:
    """Return means per dense seed, (knobs..., loads..., dense_seed); all other dimensions are averaged over.

    Pairs and copies of one dense network are not independent, so they count as one observation. A grid without the
    dimension ``dense_seed`` gets one of length 1.
    """
    axes = [*knobs, *loads_of(values)]
    if "dense_seed" not in values.dims:
        values = values.expand_dims(dense_seed=[0])
    within = [dim for dim in values.dims if dim not in (*axes, "dense_seed")]
    return values.mean(within, skipna=True).transpose(*axes, "dense_seed")


def cell_stderr(data: xr.Dataset, name: str, knobs: list[str]) -> xr.DataArray:
    """Return the standard error of each cell's mean, over seeds or over images, whichever is larger.

    With several dense seeds it is computed over their means. With one, over its copies or pairs, which does not include
    the variance between dense networks; m copies form m(m-1)/2 pairs that share them, and if a pair's value is the sum
    of two copies' effects, the variance of the mean is 4/m of the variance between pairs. The error over images
    (``<name>_stderr``) is common to all pairs and does not average out. 0 if the grid has neither.
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
    """The number m of copies with m(m-1)/2 = pairs."""
    return (1 + math.isqrt(1 + 8 * pairs)) // 2


def cells_at_chance(data: xr.Dataset, knobs: list[str]) -> xr.DataArray | None:
    """Return a mask of cells at chance: mean error at least nine tenths of the chance error.

    Two networks at chance are trivially connected and similar, so they have no regime. Judged by the training error
    where the test error is not known. None if the grid has no attribute ``chance_error`` or neither error.
    """
    chance = data.attrs.get("chance_error")
    axes = {*knobs, *loads_of(data)}
    known = [name for name in ("test_error", "train_error") if name in data and axes <= set(data[name].dims)]
    if chance is None or not known:
        return None
    return cell_mean(data[known[0]], knobs) >= CHANCE_SHARE * float(chance)


def error_scale(data: xr.Dataset) -> float:
    """Return the scale that LMC is divided by before classification.

    1 if LMC is a fraction of error; the median test error if it is a loss, so that regimes do not depend on its unit.
    """
    if "lmc" not in data or data["lmc"].attrs.get("units", "1") == "1":
        return 1.0
    alike = "test_error" in data and data["test_error"].attrs.get("units", "1") == data["lmc"].attrs["units"]
    around = data["test_error"] if alike else abs(data["lmc"])
    typical = float(around.median())
    return typical if np.isfinite(typical) and typical > 0 else 1.0


def seeds_of(data: xr.Dataset) -> dict[str, int]:
    """Return the number of seeds and pairs of a grid, by dimension."""
    return {name: data.sizes[name] for name in SEEDS if name in data.sizes}
