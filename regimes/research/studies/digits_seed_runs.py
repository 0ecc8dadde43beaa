"""The five sweeps of digits with five dense seeds each: what advice and its controls are judged on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from regimes.errors import UserError
from regimes.experiment.run import run
from regimes.record.grid import load_netcdf, read_grid, save_grid
from regimes.research.page import Say
from regimes.research.studies.digits_knob_sweeps import FOLDER

SETTINGS = {
    "digits": "temperature.batch_size=[8, 16, 32, 64, 128, 256, 512]",
    "digits-epochs": "temperature.epochs=[2, 5, 10, 20, 40, 60, 80]",
    "digits-learning-rate": "temperature.learning_rate=[0.03, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]",
    "digits-sam-rho": "temperature.sam_rho=[0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6]",
    "digits-weight-decay": "temperature.weight_decay=[0.0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.03]",
}
CHANGES = (
    "dense_seeds=5",
    "retrain_seeds=2",
    "load.density=[0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5]",
    'measure.metrics=["error", "lmc", "cka"]',
)
KEPT = ("lmc", "lmc_stderr", "cka", "cka_stderr", "test_error", "dense_test_error")


def seeded(out: Path, runs: Path, say: Say) -> Mapping[str, xr.Dataset]:
    """{sweep: grid}: the recorded ones in ``out``, where they are; what is missing is run and recorded there.

    Raises:
        UserError: a sweep file is not here, or stages failed.
    """
    grids = {}
    for name, turned in SETTINGS.items():
        recorded = out / f"{name}.nc"
        if not recorded.exists():
            file = FOLDER / f"{name}.toml"
            if not file.exists():
                raise UserError(f"{file}: no such sweep file; run this study in a clone of the repository")
            result = run(file, runs / f"{name}-seeds", changes=(*CHANGES, turned))
            if result.progress.failed:
                first = next(iter(result.progress.failed.values()))
                raise UserError(f"{result.folder}: {len(result.progress.failed)} stages failed ({first})")
            say(f"{name}: {len(result.stages)} stages, {result.seconds / 60:.1f} min")
            out.mkdir(parents=True, exist_ok=True)
            grid = read_grid(result.folder)
            save_grid(grid[[each for each in KEPT if each in grid]], recorded)
        grids[name] = load_netcdf(recorded)
    return grids
