"""The five digits sweeps, one for each temperature knob, with one dense seed or with five."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from regimes.errors import UserError
from regimes.experiment.run import Result, run
from regimes.plots.run_info import run_facts
from regimes.record.grid import load_netcdf, read_grid, save_grid
from regimes.regime_map.classify import classify
from regimes.research.page import Say

SWEEP_FOLDER = Path("sweeps")
SWEEPS = ("digits", "digits-learning-rate", "digits-epochs", "digits-weight-decay", "digits-sam-rho")
METRICS = ["error", "lmc", "lmc_test", "curve", "cka", "agreement", "hessian_trace", "hessian_top", "fisher"]
METRICS += ["sharpness"]
ONE_SEED_CHANGES = (
    "load.density=[0.02, 0.03, 0.05, 0.08, 0.4]",
    f"measure.metrics={METRICS}",
    "measure.hessian.images=128",
    "measure.curve={epochs = 10, images = 512}",
)
FIVE_SEED_CHANGES = (
    "dense_seeds=5",
    "retrain_seeds=2",
    "load.density=[0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5]",
    'measure.metrics=["error", "lmc", "cka", "hessian_trace"]',
    "measure.hessian.images=128",
)
FIVE_SEED_TEMPERATURES = {
    "digits": "temperature.batch_size=[8, 16, 32, 64, 128, 256, 512]",
    "digits-epochs": "temperature.epochs=[2, 5, 10, 20, 40, 60, 80]",
    "digits-learning-rate": "temperature.learning_rate=[0.03, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]",
    "digits-sam-rho": "temperature.sam_rho=[0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6]",
    "digits-weight-decay": "temperature.weight_decay=[0.0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.03]",
}
SAVED_VARIABLES = (
    *("lmc", "lmc_stderr", "cka", "cka_stderr", "test_error", "dense_test_error"),
    *("train_error", "hessian_trace", "hessian_trace_stderr"),
)


def one_seed_grids(runs: Path, say: Say) -> tuple[Mapping[str, xr.Dataset], str]:
    """Run or complete the sweeps with one dense seed, all with the same densities and metrics.

    Returns:
        {sweep: classified grid}, and a sentence on the time that the runs took.

    Raises:
        UserError: a sweep file is missing, or stages failed.
    """
    grids: dict[str, xr.Dataset] = {}
    hours = 0.0
    for name in SWEEPS:
        result = run_sweep(name, runs / name, ONE_SEED_CHANGES, say)
        grids[name] = classify(read_grid(result.folder))
        hours += sum(spent for _, spent in run_facts(result.folder)["stages"].values())
    return grids, f"The five runs took {60 * hours:.0f} core-minutes, in this command or earlier ones."


def five_seed_grids(out: Path, runs: Path, say: Say) -> Mapping[str, xr.Dataset]:
    """Return {sweep: grid} of the sweeps with five dense seeds.

    Grids are read from ``out``; missing ones are run and saved there.

    Raises:
        UserError: a sweep file is missing, or stages failed.
    """
    grids = {}
    for name, temperature in FIVE_SEED_TEMPERATURES.items():
        saved = out / f"{name}.nc"
        if not saved.exists():
            result = run_sweep(name, runs / f"{name}-seeds", (*FIVE_SEED_CHANGES, temperature), say)
            out.mkdir(parents=True, exist_ok=True)
            grid = read_grid(result.folder)
            save_grid(grid[[each for each in SAVED_VARIABLES if each in grid]], saved)
        grids[name] = load_netcdf(saved)
    return grids


def run_sweep(name: str, folder: Path, changes: Sequence[str], say: Say, **how: Any) -> Result:
    """Run or complete a sweep of the folder ``sweeps``.

    Args:
        name: the sweep file's name without extension.
        folder: the run folder.
        changes: overrides of keys of the file.
        say: called with a line of progress.
        how: further arguments of `regimes.experiment.run.run`.

    Raises:
        UserError: the sweep file is missing, or stages failed.
    """
    file = SWEEP_FOLDER / f"{name}.toml"
    if not file.exists():
        raise UserError(f"{file}: sweep file not found; run this study in a clone of the repository")
    result = run(file, folder, changes=changes, **how)
    if result.progress.failed:
        first = next(iter(result.progress.failed.values()))
        raise UserError(f"{result.folder}: {len(result.progress.failed)} stages failed ({first})")
    say(f"{folder.name}: {len(result.stages)} stages, {result.seconds / 60:.1f} min")
    return result
