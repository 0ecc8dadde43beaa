"""What an adaptive sweep would have measured of grids that are recorded in full, and of diagrams with known regimes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from regimes.plots.text_table import TextTable
from regimes.regime_map.acquisition import MapKnowledge, converged
from regimes.regime_map.cell_stats import seed_means
from regimes.regime_map.landscape_rules import smooth
from regimes.regime_map.measured_grid import MeasuredGrid
from regimes.regime_map.regime_map import RegimeMap
from regimes.research.page import Say
from regimes.research.studies.replay_sweep import at_random, replay
from regimes.research.studies.synthetic_grids import NOISES, SHAPES, SOFTNESS, diagram

ROUND = 12
THIRD = 1 / 3
TIMES = 3  # random choices of as many cells
SIZE, SEEDS, DIAGRAMS = (9, 9), 3, 2
SHOWN = ("stops at", "regimes: at the stop", "at a third", "random third", "whole grid")
ERRORS = ("excess error: at the stop", "at a third", "random third", "whole grid")


def on_records(grids: Mapping[str, xr.Dataset], say: Say) -> TextTable:
    """Replay each recorded grid: regimes against those of the whole grid, and the excess error of what is selected."""
    rows: list[list[str]] = [["knob", *SHOWN, *ERRORS]]
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
        "stops at: share of the cells measured when the map was known; regimes: cells named as by the whole grid",
        f"random third: as many at random, mean of {TIMES}; excess in points, over the best temperature by all seeds",
    ]
    return TextTable("Adaptive sweeps, replayed on the recorded grids", rows, notes, facts)


def on_diagrams(say: Say) -> TextTable:
    """Replay diagrams with known regimes."""
    rows: list[list[str]] = [["shape", *SHOWN]]
    facts = []
    for shape in SHAPES:
        found: list[dict[str, float]] = []
        for softness in SOFTNESS.values():
            for seed in range(DIAGRAMS):
                grid, truth = diagram(shape, NOISES["usual"], softness, seed, SIZE, SEEDS)
                flat: NDArray[np.int64] = truth.reshape(-1)
                found.append(_replayed(grid, lambda seen, flat=flat: float((_regimes(seen) == flat).mean())))
        mean = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
        facts.append({"shape": shape, **mean})
        rows.append([shape, *(f"{mean[key]:.1%}" for key in ("share", "stop", "third", "random", "whole"))])
        say(f"{shape}: replayed, stops at {mean['share']:.0%}")
    keys = ("share", "stop", "third", "random", "whole")
    rows.append(["all", *(f"{np.mean([each[key] for each in facts]):.1%}" for key in keys)])
    notes = [f"{SIZE[0]} x {SIZE[1]} cells, {SEEDS} dense seeds, usual noise; regimes: cells with the true one"]
    return TextTable("Adaptive sweeps, replayed on diagrams with a known answer", rows, notes, facts)


def _replayed(grid: xr.Dataset, score: Any) -> dict[str, float]:
    """The score where the adaptive sweep stops, at a third of the cells, of random thirds, and of the whole grid."""
    total = int(np.prod(MeasuredGrid.of(grid).shape)) * grid.sizes["dense_seed"]
    history: list[MapKnowledge] = []
    found: dict[str, float] = {}
    for cells, seen, known in replay(grid, ROUND):
        history.append(known)
        if "third" not in found and cells + ROUND > THIRD * total:
            found["third"] = score(seen)
            found["random"] = float(np.mean([score(at_random(grid, cells, seed)) for seed in range(TIMES)]))
        if "stop" not in found and converged(history):
            found |= {"share": cells / total, "stop": score(seen)}
        if "stop" in found and "third" in found:
            break
    whole = score(grid)
    return {"share": 1.0, "stop": whole, "whole": whole, **found}


def _regimes(grid: xr.Dataset) -> NDArray[np.int64]:
    """The most probable regime of every cell, measured or not."""
    found: NDArray[np.int64] = smooth(MeasuredGrid.of(grid), {}).probability.argmax(1)
    return found


def _excess(seen: xr.Dataset, whole: xr.Dataset) -> float:
    """Error of what is selected, over the best temperature's, by the errors of all seeds; mean over densities."""
    chart = RegimeMap(seen)
    errors = seed_means(whole["test_error"], chart.knobs).mean("dense_seed")
    lost = []
    for density in whole["density"].values:
        column = errors.sel(density=density)
        lost.append(float(column.sel(chart.select(float(density)).selected) - column.min()))
    return float(np.mean(lost))
