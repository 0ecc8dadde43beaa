"""Study ``text``: a small language model; dense networks, correlations with pruned error, diagnosis of every cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from regimes.diagnosis.diagnose_cell import diagnose_cell
from regimes.diagnosis.gains import gains_of
from regimes.plots.grid_matrix import percent
from regimes.plots.text_table import TextTable
from regimes.record.grid import load_netcdf, read_grid, save_grid
from regimes.regime_map.classify import classify
from regimes.research.page import Page, Say
from regimes.research.studies.digits_sweeps import run_sweep
from regimes.research.studies.metric_correlations import correlations

GRID = "grid.nc"
KNOB = "learning_rate"
CORRELATED = ("dense_test_error", "train_error", "train_loss", "lmc", "cka", "hessian_trace")
SHOWN = ("dense_test_error", "test_error", "lmc")
CONTROLS = {"always hotter": True, "always colder": False}
TITLE = "Text: a character model on the docstrings of Python's standard library"
PARAGRAPHS = [
    "A transformer of two blocks (width 48, AdamW with warm-up and clipping) predicts the next character; the error is "
    "the share of wrong characters. `sweeps/text.toml`: the dense learning rate is the temperature, density the load, "
    "two dense seeds, three copies. [The map](../text/README.md) is a page of its own. The settings were chosen on "
    "smaller runs of dense seed 0, by whether dense networks fit their text and copies are separated by a barrier at "
    "all, so nothing here confirms a claim; it says what is seen.",
    "Hotter is right in a cell if a hotter learning rate has a lower mean test error by more than a colder one has; "
    "cells where neither has are left out. The packaged diagnosis was learnt on dense image classifiers.",
]


def study(out: Path, runs: Path, say: Say) -> Page:
    """Run or complete the sweep, and evaluate the diagnosis of every cell."""
    if not (out / GRID).exists():
        grid = read_grid(run_sweep("text", runs / "text", [], say).folder)
        out.mkdir(parents=True, exist_ok=True)
        save_grid(grid.drop_dims([name for name in ("t", "position") if name in grid.dims]), out / GRID)
    grid = load_netcdf(out / GRID)
    tables = [_means(grid), _diagnosis(grid), *correlations({"learning rate": classify(grid)}, CORRELATED)[1]]
    return Page("text", TITLE, PARAGRAPHS, tables)


def _means(grid: xr.Dataset) -> TextTable:
    """Dense test error, and test error, training error and LMC at each density, by learning rate."""
    means = {name: grid[name].mean([dim for dim in grid[name].dims if dim not in (KNOB, "density")]) for name in SHOWN}
    densities = grid["density"].values
    rows = [
        ["learning rate", "dense test error", *(f"{name} at {percent(d)} %" for name in SHOWN[1:] for d in densities)]
    ]
    facts = []
    for rate in grid[KNOB].values:
        at = {name: each.sel({KNOB: rate}) for name, each in means.items()}
        numbers = [
            float(at["dense_test_error"]),
            *(float(at[name].sel(density=d)) for name in SHOWN[1:] for d in densities),
        ]
        rows.append([f"{rate:g}", *(f"{100 * each:.1f} %" for each in numbers)])
        facts.append({KNOB: float(rate), "values": numbers})
    return TextTable("Means over seeds and copies", rows, [], facts)


def _diagnosis(grid: xr.Dataset) -> TextTable:
    """Share of cells in which the packaged diagnosis and the controls point in the better direction, by density."""
    truth = gains_of(grid)
    gain = (truth["gain_hotter"] - truth["gain_colder"]).transpose(KNOB, "density")
    found = xr.zeros_like(gain)
    for rate in grid[KNOB].values:
        for density in grid["density"].values:
            found.loc[{KNOB: rate, "density": density}] = diagnose_cell(
                grid, float(density), {KNOB: float(rate)}
            ).p_hotter
    answers: Mapping[str, xr.DataArray] = {
        "diagnosis": found > 0.5,
        **{name: xr.full_like(gain, up, dtype=bool) for name, up in CONTROLS.items()},
    }
    densities = grid["density"].values
    rows = [["chosen by", *(f"{percent(each)} %" for each in densities), "all"]]
    facts = []
    for name, hotter in answers.items():
        right = (hotter == (gain > 0)).where(gain != 0)
        shares = [float(right.sel(density=each).mean()) for each in densities] + [float(right.mean())]
        rows.append([name, *(f"{each:.0%}" for each in shares)])
        facts.append({"name": name, "shares": shares, "cells": int(np.isfinite(right).sum())})
    notes = [f"{facts[0]['cells']} of {gain.size} cells have a better direction; they share dense networks"]
    return TextTable("Directions that lower the test error, by density", rows, notes, facts)
