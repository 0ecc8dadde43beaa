"""Study ``measures``: correlation of landscape measures with the pruned test error, by density and regime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from regimes.plots.grid_matrix import percent
from regimes.plots.text_table import TextTable
from regimes.record.grid import knobs_of
from regimes.regime_map.cell_stats import cell_mean
from regimes.regime_map.classify import REGIMES
from regimes.research.page import Page, Say
from regimes.research.studies.digits_sweeps import one_seed_grids
from regimes.research.studies.rank_ci import Correlation, spearman

MEASURES = {
    "dense_test_error": "test error before pruning",
    "train_error": "training error",
    "train_loss": "training loss",
    "lmc": "LMC (training error)",
    "lmc_test": "LMC (test error)",
    "curve": "trained curve",
    "cka": "CKA, softmax",
    "disagreement": "disagreement",
    "js_divergence": "Jensen-Shannon divergence",
    "weight_distance": "L2 distance of weights",
    "hessian_trace": "Hessian trace",
    "hessian_top": "top Hessian eigenvalue",
    "fisher_trace": "empirical Fisher trace",
    "sharpness": "sharpness (SAM's)",
}
TITLE = "Correlation of landscape measures with the pruned test error"


def study(out: Path, runs: Path, say: Say) -> Page:
    """Correlate every measure with the test error over the cells of the five digits sweeps."""
    grids, took = one_seed_grids(runs, say)
    found, tables = correlations(grids, MEASURES)
    for name, line in found.items():
        say(f"{MEASURES[name]}: {line[-1]}")
    figure = _figure(found, list(tables[0].rows[0][1:]))
    return Page("measures", TITLE, [INTRODUCTION, took, *_summary(found)], tables, {"correlations": figure})


def correlations(
    grids: Mapping[str, xr.Dataset], measures: Iterable[str]
) -> tuple[Mapping[str, Sequence[Correlation]], list[TextTable]]:
    """Correlate measures with the test error over the cells of classified grids with the same densities.

    Returns:
        {measure: correlations at each density and over all}, and tables of these and of the same by regime.
    """
    cells = cells_of(grids)
    densities = sorted(cells["density"].unique())
    found: dict[str, list[Correlation]] = {}
    regimes: dict[str, list[Correlation]] = {}
    for name in measures:
        at = [_correlate(cells[cells["density"] == density], name, ["knob"]) for density in densities]
        found[name] = [*at, _correlate(cells, name, ["knob", "density"])]
        regimes[name] = [
            _correlate(cells[cells["regime"] == number], name, ["knob", "density"]) for number in REGIMES if number >= 0
        ]
    columns = [*(f"{percent(each)} %" for each in densities), "all"]
    names = [name for number, name in REGIMES.items() if number >= 0]
    return found, [
        _table("Rank correlation with the pruned network's test error, by density", found, columns),
        _table("The same by regime, all densities", regimes, names),
    ]


INTRODUCTION = (
    "Cells of the five digits sweeps (batch size, learning rate, epochs, weight decay, SAM's rho; one dense seed, "
    "means over three retrained copies or pairs). Spearman's rank correlation of each measure with the test error of "
    "the pruned and retrained networks; ranks are taken within each knob (and each density, where several are "
    "pooled), so differences between knobs or densities have no effect. In brackets a 95 % interval by bootstrap over "
    "cells. Cells share seeds, so they are not independent and the intervals are rather too narrow than too wide. "
    "Positive: the test error is high where the measure is high."
)


def cells_of(grids: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return one row per cell: knob, density, regime, test error, and the mean of every measure."""
    rows: list[dict[str, Any]] = []
    for grid in grids.values():
        (knob,) = knobs_of(grid)
        means = {name: cell_mean(grid[name], [knob]) for name in ("test_error", *MEASURES) if _has(grid, name)}
        means |= {
            name: grid[name].mean([each for each in grid[name].dims if each != knob])
            for name in MEASURES
            if name in grid and "density" not in grid[name].dims
        }
        for temperature in grid[knob].values:
            for density in grid["density"].values:
                place = {knob: temperature, "density": density}
                row = {"knob": knob, "density": float(density), "regime": int(grid["regime"].sel(place))}
                for name, values in means.items():
                    row[name] = float(values.sel({dim: place[dim] for dim in map(str, values.dims)}))
                rows.append(row)
    return pd.DataFrame(rows)


def _has(grid: xr.Dataset, name: str) -> bool:
    return name in grid and "density" in grid[name].dims


def _correlate(cells: pd.DataFrame, name: str, strata: list[str]) -> Correlation:
    if name not in cells or len(cells) < 4:
        return Correlation(np.nan, np.nan, np.nan, len(cells))
    numbers = cells.groupby(strata).ngroup().to_numpy().astype(np.int64)
    return spearman(cells[name].to_numpy(float), cells["test_error"].to_numpy(float), numbers)


def _table(title: str, found: Mapping[str, Sequence[Correlation]], columns: Sequence[str]) -> TextTable:
    rows = [["measure", *columns]]
    rows += [[MEASURES[name], *map(str, each)] for name, each in found.items()]
    cells = next(iter(found.values()))
    facts = [
        {"measure": name, "column": column, **dataclasses.asdict(each)}
        for name, line in found.items()
        for column, each in zip(columns, line, strict=True)
    ]
    counts = ", ".join(f"{column}: {each.cells}" for column, each in zip(columns, cells, strict=True))
    return TextTable(title, rows, [f"cells - {counts}"], facts)


def _summary(found: Mapping[str, Sequence[Correlation]]) -> list[str]:
    """Summary of the correlations as text."""
    sure = sorted(
        ((each[-1], name) for name, each in found.items() if each[-1].excludes_zero), key=lambda x: -abs(x[0].value)
    )
    if not sure:
        return ["Over all densities no interval excludes zero."]
    named = [f"{MEASURES[name]} {each}" for each, name in sure]
    rest = [MEASURES[name] for name, each in found.items() if not each[-1].excludes_zero]
    lines = [f"Over all densities, intervals exclude zero for: {'; '.join(named)}."]
    return [*lines, f"They include zero for: {', '.join(rest)}."] if rest else lines


def _figure(found: Mapping[str, Sequence[Correlation]], columns: Sequence[str]) -> Figure:
    values = pd.DataFrame([[each.value for each in line] for line in found.values()])
    values.index, values.columns = [MEASURES[name] for name in found], list(columns)
    figure = Figure(figsize=(0.85 * len(columns) + 3.2, 0.36 * len(found) + 1.5), layout="constrained")
    axes = figure.subplots()
    said = values.map(lambda value: "" if np.isnan(value) else f"{value:+.2f}")
    sns.heatmap(
        values,
        ax=axes,
        cmap="PuOr_r",
        vmin=-1,
        vmax=1,
        annot=said,
        fmt="",
        annot_kws={"fontsize": 8.5},
        linewidths=0.6,
        linecolor="#ffffff",
        cbar_kws={"label": "Spearman's rank correlation"},
    )
    for row, line in enumerate(found.values()):
        for column, each in enumerate(line):
            if each.excludes_zero:  # framed: the interval excludes zero
                axes.add_patch(
                    Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, fill=False, edgecolor="#111111", lw=1.4)
                )
    axes.set(xlabel="density", ylabel="")
    axes.set_title("with the pruned test error; framed: 95 % interval excludes zero", fontsize=9.5)
    axes.tick_params(axis="both", length=0)
    axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    return figure
