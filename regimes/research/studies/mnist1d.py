"""Study ``mnist1d``: the comparisons stated for the MNIST-1D sweep, its advice, and an ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from regimes.experiment.stages.stage import Stage
from regimes.plots.advice_section import format_excess
from regimes.plots.phase_diagram import phase_diagram
from regimes.plots.text_table import TextTable
from regimes.record.grid import load_netcdf, read_grid, save_grid
from regimes.regime_map.classify import classify, present
from regimes.regime_map.evaluate_advice import AdviceEvaluation, evaluate_advice, pooled
from regimes.regime_map.regime_map import RegimeMap
from regimes.research.page import Page, Say
from regimes.research.studies.digits_sweeps import run_sweep
from regimes.research.studies.metric_correlations import correlations
from regimes.research.studies.mnist1d_ablation import ablation_grids, ablation_table
from regimes.research.studies.paired_tests import Numbers
from regimes.research.studies.stated_comparisons import MEASURES, all_pairs, cell_means, comparison_table, outcomes

FRESH_SEEDS = range(3, 11)  # dense seeds of the statement
STATED_GRID = (
    "retrain_seeds=2",
    "temperature.batch_size=[8, 16, 24, 32, 64, 128]",
    "load.density=[0.08, 0.11, 0.15, 0.2, 0.35, 0.6]",
)
GRID = "grid.nc"
BOOTSTRAP_DRAWS = 2000
CORRELATED = ("dense_test_error", "train_error", "train_loss", "lmc", "cka", "hessian_trace", "hessian_top")
CELL_MEANS = {**MEASURES, "train_error": "training error"}
TITLE = "MNIST-1D: comparisons stated in advance, advice and ablation"
PARAGRAPHS = [
    "PreResNet-8 (width 8) for signals on MNIST-1D (synthetic, 2,000 training signals), batch size as the temperature: "
    "`sweeps/mnist1d.toml` with 6 batch sizes x 6 densities x 8 dense seeds x 2 copies. The setting was chosen by "
    "its test errors on dense seeds 0 to 2; everything here is measured on others, 3 to 10, by "
    "[comparisons stated before the run](../mnist1d/COMPARISONS.md). The data are those it was chosen on. The grid is "
    "in this folder as netCDF; without it the study repeats the run.",
    "The ablation has three dense seeds (11 to 13) and nine cells per setting; some of its grids were recorded on an "
    "AMD EPYC, some on an Intel Xeon. Depth and other knobs are not measured.",
    "An earlier start was stopped before its end to train the networks in fleets; its values were not read. The dense "
    "networks of seeds 3 to 7 at batch size 8 may therefore have been trained once before.",
]


def study(out: Path, runs: Path, say: Say) -> Page:
    """Run or complete the confirming run and the ablation, and test what was stated."""
    grid = confirmation_grid(out, runs, say)
    tables = [comparison_table(grid), *cell_means(grid, CELL_MEANS), advice_table(grid), single_seed_table(grid)]
    tables += [*correlations({"batch size": classify(grid)}, CORRELATED)[1], *all_pairs(grid)]
    say("comparisons and advice evaluated")
    tables.insert(1, ablation_table({"as stated": grid, **ablation_grids(out, runs, say)}))
    return Page("mnist1d", TITLE, [*PARAGRAPHS, _summary(grid)], tables, {"map": _figure(grid)})


def _figure(grid: xr.Dataset) -> Figure:
    """Phase diagram of the recorded grid, with advice."""
    chart = RegimeMap(grid)
    return phase_diagram(chart.data, chart)


def confirmation_grid(out: Path, runs: Path, say: Say) -> xr.Dataset:
    """Return the grid of the fresh dense seeds, from ``out``; if it is missing, run it and save it there."""
    if not (out / GRID).exists():
        changes = [f"dense_seeds={FRESH_SEEDS.stop}", *STATED_GRID]
        result = run_sweep("mnist1d", runs / "mnist1d-confirm", changes, say, engine="stacked", only=_is_fresh)
        grid = read_grid(result.folder).sel(dense_seed=list(FRESH_SEEDS))
        out.mkdir(parents=True, exist_ok=True)
        save_grid(grid.drop_dims([name for name in ("t", "position") if name in grid.dims]), out / GRID)
    return load_netcdf(out / GRID)


def single_seed_table(grid: xr.Dataset) -> TextTable:
    """Cells of each regime in the map of every dense seed alone, and the share that is as in the map of all."""
    whole = classify(grid)
    rows, facts = [["dense seeds", *present(whole), "cells as with all seeds"]], []
    for seed in [None, *grid["dense_seed"].values.tolist()]:
        found = whole if seed is None else classify(grid.sel(dense_seed=[seed]))
        same = float((found["regime"].values == whole["regime"].values).mean())
        counts = present(found)
        rows.append(["all" if seed is None else str(seed), *map(str, counts.values()), f"{same:.0%}"])
        facts.append({"seed": seed, "cells": counts, "same": same})
    return TextTable("Maps of single dense seeds", rows, [], facts)


def _is_fresh(stage: Stage) -> bool:
    return stage.coords["dense_seed"] in FRESH_SEEDS


def _summary(grid: xr.Dataset) -> str:
    found = outcomes(grid)
    rows = list(dict.fromkeys(each.comparison.row for each in found))
    whole = [row for row in rows if all(each.confirmed for each in found if each.comparison.row == row)]
    missed = [each.comparison.claim for each in found if not each.confirmed]
    text = f"Confirmed: {sum(each.confirmed for each in found)} of {len(found)}; rows {', '.join(whole) or 'none'}."
    return text + (f" **Not confirmed**: {'; '.join(missed)}." if missed else "")


# -- advice -----------------------------------------------------------------------------------------------------------


def advice_table(grid: xr.Dataset) -> TextTable:
    """Return the evaluation of advice with intervals by bootstrap over the dense seeds left out."""
    parts = [evaluate_advice(grid, seeds=[seed]) for seed in grid["dense_seed"].values.tolist()]
    draws = np.random.default_rng(0).integers(len(parts), size=(BOOTSTRAP_DRAWS, len(parts)))
    found = {each.name: each for each in pooled(parts)}
    drawn = [{each.name: each for each in pooled([parts[place] for place in draw])} for draw in draws]
    rows = [["chosen by", "right directions", "95 %", "mean excess", "gain over chance", "95 %"]]
    facts = []
    for name, each in found.items():
        right, gain = (_interval(drawn, name, field) for field in ("right", "captured"))
        row = [name, f"{each.right:.0%} of {each.cases}" if each.cases else "-"]
        row.append(f"{right[0]:.0%} to {right[1]:.0%}" if each.cases else "-")
        row.append(format_excess(each.mean, True) if each.choices else "-")
        row += [f"{each.captured:+.2f}", f"{gain[0]:+.2f} to {gain[1]:+.2f}"] if each.choices else ["-", "-"]
        rows.append(row)
        facts.append({**vars(each), "right_interval": right, "captured_interval": gain})
    notes = [
        "a map of all dense seeds but one gives advice, evaluated by the test errors of that one",
        f"intervals: bootstrap over the {len(parts)} seeds left out ({BOOTSTRAP_DRAWS:,} draws); the maps share seeds",
        "gain over chance in log error: 1 for the lowest error at each density, 0 for a random temperature",
    ]
    return TextTable("Advice against controls, one dense seed left out", rows, notes, facts)


def _interval(drawn: Sequence[Mapping[str, AdviceEvaluation]], name: str, field: str) -> list[float]:
    values: Numbers = np.array([getattr(each[name], field) for each in drawn if name in each], dtype=float)
    known = values[np.isfinite(values)]
    return [float(each) for each in np.quantile(known, [0.025, 0.975])] if len(known) else [float("nan")] * 2
