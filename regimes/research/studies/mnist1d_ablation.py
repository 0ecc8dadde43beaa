"""Ablation of the MNIST-1D sweep: one setting changed at a time, on fewer cells and dense seeds of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from regimes.experiment.stages.stage import Stage
from regimes.plots.text_table import TextTable
from regimes.record.grid import load_netcdf, open_grid, save_grid
from regimes.regime_map.cell_stats import seed_means
from regimes.research.page import Say
from regimes.research.studies.digits_sweeps import run_sweep
from regimes.research.studies.paired_tests import paired_test
from regimes.research.studies.stated_comparisons import KNOB, difference_text

FIRST_SEED, SEEDS = 11, 3  # dense seeds 11, 12, 13
CHANGES = (
    f"dense_seeds={FIRST_SEED + SEEDS}",
    "retrain_seeds=2",
    "temperature.batch_size=[16, 64, 128]",
    "load.density=[0.11, 0.2, 0.6]",
    'measure={metrics = ["error", "lmc"]}',
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "dense weight decay 5e-4": ("recipe.weight_decay=5e-4",),
    "dense weight decay 1e-4": ("recipe.weight_decay=1e-4",),
    "retraining weight decay 3e-3": ("retrain.weight_decay=3e-3",),
    "dense training of 20 epochs": ("recipe.epochs=20",),
    "dense training of 80 epochs": ("recipe.epochs=80",),
    "retraining of 24 epochs": ("retrain.epochs=24",),
    "width 16": ("model.width=16",),
    "1000 signals, as many steps": ("data.train=1000", "recipe.epochs=80", "retrain.epochs=24"),
    "4000 signals, as many steps": ("data.train=4000", "recipe.epochs=20", "retrain.epochs=6"),
    "data of another seed": ("data.seed=43",),
    "MLP": ('model={name = "mlp"}',),
    "digits": ('data={name = "digits"}',),
}
# (column, measure, batch size, minus batch size, density)
CONTRASTS = (
    ("LMC 128 - 16, 11 %", "lmc", 128, 16, 0.11),
    ("LMC 128 - 16, 20 %", "lmc", 128, 16, 0.2),
    ("error 128 - 16, 11 %", "test_error", 128, 16, 0.11),
    ("error 128 - 16, 20 %", "test_error", 128, 16, 0.2),
    ("error 64 - 16, 11 %", "test_error", 64, 16, 0.11),
    ("error 64 - 16, 60 %", "test_error", 64, 16, 0.6),
)


def ablation_grids(out: Path, runs: Path, say: Say) -> Mapping[str, xr.Dataset]:
    """Return {variant: grid}. Grids are read from ``out``; missing ones are run and saved there."""
    grids = {}
    for name, changes in VARIANTS.items():
        saved = out / file_name(name)
        if not saved.exists():
            result = run_sweep("mnist1d", runs / f"mnist1d-{saved.stem}", (*CHANGES, *changes), say, only=_own_seed)
            out.mkdir(parents=True, exist_ok=True)
            grid = open_grid(result.folder).isel(dense_seed=slice(FIRST_SEED, None))
            save_grid(grid[["lmc", "test_error", "train_error", "dense_test_error"]], saved)
        grids[name] = load_netcdf(saved)
    return grids


def file_name(variant: str) -> str:
    """Return the name of a variant's netCDF file."""
    return f"ablation-{variant.lower().replace(' ', '-').replace(',', '')}.nc"


def _own_seed(stage: Stage) -> bool:
    return bool(stage.coords["dense_seed"] >= FIRST_SEED)


def ablation_table(grids: Mapping[str, xr.Dataset]) -> TextTable:
    """Return a table with a row per variant and a column per contrast."""
    rows, facts = [["setting", "dense seeds", *(name for name, *_ in CONTRASTS)]], []
    for variant, grid in grids.items():
        tests = {}
        for name, measure, size, other, density in CONTRASTS:
            values = seed_means(grid[measure], [KNOB]).sel(density=density)
            apart = values.sel({KNOB: size}) - values.sel({KNOB: other})
            tests[name] = paired_test(np.asarray(apart.values, dtype=float))
        rows.append([variant, str(grid.sizes["dense_seed"]), *map(difference_text, tests.values())])
        facts.append({"variant": variant, "contrasts": {name: vars(test) for name, test in tests.items()}})
    notes = [
        "percent: colder minus hotter; in brackets t over dense seeds (with three, 4.3 is p = 0.05), not corrected",
        "LMC below zero: a barrier appears; error above zero: hotter prunes better, below: colder does",
    ]
    return TextTable("Ablation: one setting changed at a time", rows, notes, facts)
