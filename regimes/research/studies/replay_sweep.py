"""An adaptive sweep on a grid that is recorded already: what it would have measured, and what it would have known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from regimes.record.grid import check_grid
from regimes.regime_map.acquisition import Cell, MapKnowledge, first_cells, next_cells
from regimes.regime_map.measured_grid import MeasuredGrid


def replay(data: xr.Dataset, round_size: int) -> Iterator[tuple[int, xr.Dataset, MapKnowledge]]:
    """After each round: cells measured so far, the grid with only those, and how well it was known.

    Args:
        data: a full grid with dense seeds.
        round_size: cells of a round.
    """
    data = check_grid(data.copy(), data.attrs.get("title", "grid"))
    sorted_data = data.sortby([axis.name for axis in MeasuredGrid.of(data).axes])
    places, seeds = MeasuredGrid.of(data).places, data.sizes.get("dense_seed", 1)
    chosen = first_cells(places, seeds)
    while True:
        seen = reveal(sorted_data, chosen)
        cells, known = next_cells(seen, round_size, seeds)
        yield len(chosen), seen, known
        if not cells:
            return
        chosen = [*chosen, *cells]


def at_random(data: xr.Dataset, count: int, seed: int) -> xr.Dataset:
    """A grid with only some cells, drawn at random: what an adaptive sweep has to beat."""
    data = check_grid(data.copy(), data.attrs.get("title", "grid"))
    m = MeasuredGrid.of(data)
    sorted_data = data.sortby([axis.name for axis in m.axes])
    seeds = data.sizes.get("dense_seed", 1)
    order = np.random.default_rng(seed).permutation(len(m.places) * seeds)[:count]
    return reveal(sorted_data, [(int(each // seeds), int(each % seeds)) for each in order])


def reveal(data: xr.Dataset, cells: list[Cell]) -> xr.Dataset:
    """A sorted grid with only some of its cells; the others NaN."""
    m = MeasuredGrid.of(data)
    seeds = data.sizes.get("dense_seed", 1)
    seen = np.zeros((len(m.places), seeds), bool)
    for place, seed in cells:
        seen[place, seed] = True
    mask = m.on_grid(seen, "dense_seed")
    names = [name for name in data.data_vars if set(mask.dims) - {"dense_seed"} <= set(data[name].dims)]
    if "dense_seed" not in data.dims:
        mask = mask.isel(dense_seed=0)
    shown = {name: data[name].where(mask.drop_vars(mask.coords)).transpose(*data[name].dims) for name in names}
    return data.assign(shown).assign(tried=mask.astype(float))  # a hole of the record is not tried again
