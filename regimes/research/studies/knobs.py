"""Study ``knobs``: regime maps of all five temperature knobs on one data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from regimes.plots.phase_diagram import draw_regimes, legend_handles
from regimes.plots.text_table import TextTable
from regimes.record.grid import knobs_of
from regimes.regime_map.cell_stats import cell_mean
from regimes.regime_map.classify import classify, present
from regimes.research.page import Page, Say
from regimes.research.studies.digits_sweeps import five_seed_grids

TITLE = "Five temperature knobs: regimes of a small network on handwritten digits"
PARAGRAPHS = [
    "PreResNet-14 (width 8) on scikit-learn's handwritten digits, five dense seeds, two retrained copies of each. Each "
    "map varies another knob of the dense training, hotter upwards; pruning and retraining are always the same. The "
    "grids are those of [advice](../advice/README.md); each is classified on its own. A dot marks the lowest test "
    "error at each density.",
]
GRIDS = Path("reports/advice")
COLUMNS = 3  # maps beside each other


def study(out: Path, runs: Path, say: Say) -> Page:
    """Classify the five sweeps and draw their maps side by side."""
    grids = {name: classify(grid) for name, grid in five_seed_grids(GRIDS, runs, say).items()}
    rows = [["knob", "I", "II-A", "II-B", "lowest test error at 2 %", "at", "highest", "at"]]
    facts = []
    for grid in grids.values():
        (knob,) = knobs_of(grid)
        counts = present(grid)
        errors = cell_mean(grid["test_error"], [knob]).sel(density=0.02)
        low, high = int(errors.values.argmin()), int(errors.values.argmax())
        at = [f"{float(grid[knob][place]):g}" for place in (low, high)]
        values = [f"{100 * float(errors[place]):.1f} %" for place in (low, high)]
        rows.append([_name(grid), *(str(counts[each]) for each in ("I", "II-A", "II-B"))])
        rows[-1] += [values[0], at[0], values[1], at[1]]
        facts.append({"knob": knob, "cells": counts, "thresholds": grid["regime"].attrs["thresholds"]})
    notes = [f"{_name(grid)}: {grid['regime'].attrs['thresholds']}" for grid in grids.values()]
    table = TextTable("Cells of each regime, and test error at 2 % density", rows, notes, facts)
    return Page("knobs", TITLE, PARAGRAPHS, [table], {"maps": side_by_side(grids)})


def _name(grid: xr.Dataset) -> str:
    (knob,) = knobs_of(grid)
    return str(grid[knob].attrs.get("long_name", knob))


def side_by_side(grids: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the maps of several grids beside and below each other, with a common legend."""
    columns, rows = min(COLUMNS, len(grids)), math.ceil(len(grids) / COLUMNS)
    wide = max(grid.sizes["density"] for grid in grids.values())
    figure = Figure(figsize=((0.52 * wide + 0.75) * columns, 3.1 * rows + 0.8), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, grid in zip(all_axes, grids.values(), strict=False):
        draw_regimes(axes, grid, size=8)
        axes.set_title(f"{_name(grid)}  (hotter ↑)", fontsize=9.5)
        axes.set(xlabel="density (% of prunable weights kept)", ylabel="")
        axes.tick_params(labelsize=8.5)
    for axes in all_axes[len(grids) :]:
        axes.set_axis_off()
    first = next(iter(grids.values()))
    seen = {name: sum(present(grid)[name] for grid in grids.values()) for name in present(first)}
    figure.legend(handles=legend_handles(seen, True), loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure
