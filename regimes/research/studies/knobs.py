"""Every temperature knob on one data set: five maps side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from regimes.plots.phase_diagram import draw_regimes, legend_handles
from regimes.plots.text_table import TextTable
from regimes.record.grid import knobs_of
from regimes.regime_map.cell_stats import cell_mean
from regimes.regime_map.classify import present
from regimes.research.page import Page, Say
from regimes.research.studies.digits_knob_sweeps import family

TITLE = "Five temperatures: the regimes of one small network on handwritten digits"
WORDS = [
    "PreResNet-14 (width 8) on scikit-learn's handwritten digits, one dense seed, three retrained copies. In each map "
    "another knob of the dense training is turned, hotter upwards; pruning and retraining are the same everywhere. The "
    "thresholds are found in each grid by itself. A dot marks the lowest test error at each density.",
]


def study(out: Path, runs: Path, say: Say) -> Page:
    """Run the five sweeps, or finish them, and draw their maps beside one another."""
    grids, took = family(runs, say)
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
    sheet = TextTable("Cells of each regime, and test error at 2 % density", rows, notes, facts)
    return Page("knobs", TITLE, [*WORDS, took], [sheet], {"maps": side_by_side(grids)})


def _name(grid: xr.Dataset) -> str:
    (knob,) = knobs_of(grid)
    return str(grid[knob].attrs.get("long_name", knob))


def side_by_side(grids: Mapping[str, xr.Dataset]) -> Figure:
    """The maps of several grids in one row, with one legend."""
    wide = sum(grid.sizes["density"] for grid in grids.values())
    figure = Figure(figsize=(0.52 * wide + 0.75 * len(grids), 3.9), layout="constrained")
    all_axes = figure.subplots(1, len(grids))
    for axes, grid in zip(all_axes, grids.values(), strict=True):
        draw_regimes(axes, grid, size=8)
        axes.set_title(f"{_name(grid)}  (hotter ↑)", fontsize=9.5)
        axes.set(xlabel="", ylabel="")
        axes.tick_params(labelsize=8.5)
    all_axes[len(grids) // 2].set_xlabel("density (% of prunable weights kept)", fontsize=10)
    first = next(iter(grids.values()))
    seen = {name: sum(present(grid)[name] for grid in grids.values()) for name in present(first)}
    figure.legend(handles=legend_handles(seen, True), loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure
