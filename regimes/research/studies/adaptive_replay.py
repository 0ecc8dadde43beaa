"""Replay adaptive sweeps on fully recorded grids and on synthetic grids with known regimes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from regimes.plots.text_table import TextTable
from regimes.record.grid import check_grid
from regimes.regime_map.acquisition import Cell, MapKnowledge, converged, first_cells, next_cells
from regimes.regime_map.cell_stats import seed_means
from regimes.regime_map.measured_grid import MeasuredGrid
from regimes.regime_map.regime_map import RegimeMap
from regimes.regime_map.transition import transition
from regimes.research.page import Say
from regimes.research.studies.synthetic_grids import NOISES, SHAPES, SOFTNESS, synthetic_grid

ROUND_SIZE = 12
THIRD = 1 / 3
RANDOM_DRAWS = 3  # random selections of a third of the cells
GRID_SIZE, SEEDS, GRIDS_PER_KIND = (9, 9), 3, 2
REGIME_COLUMNS = ("stops at", "regimes: at the stop", "at a third", "random third", "whole grid")
ERROR_COLUMNS = ("excess error: at the stop", "at a third", "random third", "whole grid")


def replay_recorded_grids(grids: Mapping[str, xr.Dataset], say: Say) -> TextTable:
    """Replay recorded grids; compare the regimes with those of the whole grid, and evaluate selected temperatures."""
    rows: list[list[str]] = [["knob", *REGIME_COLUMNS, *ERROR_COLUMNS]]
    facts = []
    for name, grid in grids.items():
        truth = _regimes(grid)
        found = _replayed(grid, lambda seen, truth=truth: float((_regimes(seen) == truth).mean()))
        errors = _replayed(grid, lambda seen, grid=grid: _excess(seen, grid))
        facts.append({"grid": name, "regimes": found, "excess": errors})
        shown = [f"{found[key]:.1%}" for key in ("share", "stop", "third", "random", "whole")]
        shown += [f"{100 * errors[key]:.2f}" for key in ("stop", "third", "random", "whole")]
        rows.append([name, *shown])
        say(f"{name}: replayed, stops at {found['share']:.0%}")
    notes = [
        "stops at: share of the cells measured at convergence; regimes: share of cells classified as by the whole grid",
        f"random third: a third of the cells at random, mean of {RANDOM_DRAWS}; excess: points above the best "
        "temperature",
    ]
    return TextTable("Adaptive sweeps, replayed on the recorded grids", rows, notes, facts)


def replay_synthetic_grids(say: Say) -> TextTable:
    """Replay synthetic grids; compare the regimes with the true ones."""
    rows: list[list[str]] = [["shape", *REGIME_COLUMNS]]
    facts = []
    for shape in SHAPES:
        found: list[dict[str, float]] = []
        for softness in SOFTNESS.values():
            for seed in range(GRIDS_PER_KIND):
                grid, truth = synthetic_grid(shape, NOISES["usual"], softness, seed, GRID_SIZE, SEEDS)
                flat: NDArray[np.int64] = truth.reshape(-1)
                found.append(_replayed(grid, lambda seen, flat=flat: float((_regimes(seen) == flat).mean())))
        mean = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
        facts.append({"shape": shape, **mean})
        rows.append([shape, *(f"{mean[key]:.1%}" for key in ("share", "stop", "third", "random", "whole"))])
        say(f"{shape}: replayed, stops at {mean['share']:.0%}")
    keys = ("share", "stop", "third", "random", "whole")
    rows.append(["all", *(f"{np.mean([each[key] for each in facts]):.1%}" for key in keys)])
    notes = [
        f"{GRID_SIZE[0]} x {GRID_SIZE[1]} cells, {SEEDS} dense seeds, usual noise; regimes: share of cells with the "
        "true regime"
    ]
    return TextTable("Adaptive sweeps, replayed on synthetic grids", rows, notes, facts)


def _replayed(grid: xr.Dataset, score: Any) -> dict[str, float]:
    """Score of the adaptive sweep at its stop and at a third of the cells, of random thirds, and of the whole grid."""
    total = int(np.prod(MeasuredGrid.of(grid).shape)) * grid.sizes["dense_seed"]
    history: list[MapKnowledge] = []
    found: dict[str, float] = {}
    for cells, seen, known in replay_adaptive(grid, ROUND_SIZE):
        history.append(known)
        if "third" not in found and cells + ROUND_SIZE > THIRD * total:
            found["third"] = score(seen)
            found["random"] = float(np.mean([score(random_cells(grid, cells, seed)) for seed in range(RANDOM_DRAWS)]))
        if "stop" not in found and converged(history):
            found |= {"share": cells / total, "stop": score(seen)}
        if "stop" in found and "third" in found:
            break
    whole = score(grid)
    return {"share": 1.0, "stop": whole, "whole": whole, **found}


def _regimes(grid: xr.Dataset) -> NDArray[np.int64]:
    """The most probable regime of every cell, measured or not."""
    found: NDArray[np.int64] = transition(MeasuredGrid.of(grid), {}).probability.argmax(1)
    return found


def _excess(seen: xr.Dataset, whole: xr.Dataset) -> float:
    """Mean over densities of the selected temperature's error above the best one's, averaged over seeds."""
    chart = RegimeMap(seen)
    errors = seed_means(whole["test_error"], chart.knobs).mean("dense_seed")
    lost = []
    for density in whole["density"].values:
        column = errors.sel(density=density)
        lost.append(float(column.sel(chart.select(float(density)).selected) - column.min()))
    return float(np.mean(lost))


def replay_adaptive(data: xr.Dataset, round_size: int) -> Iterator[tuple[int, xr.Dataset, MapKnowledge]]:
    """Replay an adaptive sweep on a recorded grid; yields once per round.

    Args:
        data: a full grid with dense seeds.
        round_size: number of cells per round.

    Yields:
        The number of cells measured so far, the grid with only those, and how well the map is known.
    """
    data = check_grid(data.copy(), data.attrs.get("title", "grid"))
    sorted_data = data.sortby([axis.name for axis in MeasuredGrid.of(data).axes])
    places, seeds = MeasuredGrid.of(data).places, data.sizes.get("dense_seed", 1)
    chosen = first_cells(places, seeds)
    while True:
        seen = mask_unmeasured(sorted_data, chosen)
        cells, known = next_cells(seen, round_size, seeds)
        yield len(chosen), seen, known
        if not cells:
            return
        chosen = [*chosen, *cells]


def random_cells(data: xr.Dataset, count: int, seed: int) -> xr.Dataset:
    """Return the grid with ``count`` random cells, the baseline of an adaptive sweep; the others are NaN."""
    data = check_grid(data.copy(), data.attrs.get("title", "grid"))
    m = MeasuredGrid.of(data)
    sorted_data = data.sortby([axis.name for axis in m.axes])
    seeds = data.sizes.get("dense_seed", 1)
    order = np.random.default_rng(seed).permutation(len(m.places) * seeds)[:count]
    return mask_unmeasured(sorted_data, [(int(each // seeds), int(each % seeds)) for each in order])


def mask_unmeasured(data: xr.Dataset, cells: list[Cell]) -> xr.Dataset:
    """Return a sorted grid with only the given cells; the others are NaN."""
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
    return data.assign(shown).assign(tried=mask.astype(float))  # gaps in the record are not tried again
