"""The five sweeps of digits, one for each temperature knob, made or finished, and read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from regimes.errors import UserError
from regimes.experiment.run import run
from regimes.plots.run_info import run_facts
from regimes.record.grid import read_grid
from regimes.regime_map.classify import classify
from regimes.research.page import Say

FOLDER = Path("sweeps")
SWEEPS = ("digits", "digits-learning-rate", "digits-epochs", "digits-weight-decay", "digits-sam-rho")
DENSITIES = "load.density=[0.02, 0.03, 0.05, 0.08, 0.4]"
METRICS = ["error", "lmc", "lmc_test", "curve", "cka", "agreement", "hessian_trace", "hessian_top", "fisher"]
METRICS += ["sharpness"]
CHANGES = (
    DENSITIES,
    f"measure.metrics={METRICS}",
    "measure.hessian.images=128",
    "measure.curve={epochs = 10, images = 512}",
)


def family(runs: Path, say: Say) -> tuple[Mapping[str, xr.Dataset], str]:
    """Run what is missing and return {sweep: classified grid}, the same densities and measures in each, and a sentence
    on what the runs took, now or before.

    Raises:
        UserError: the sweep files are not here.
    """
    grids: dict[str, Any] = {}
    hours = 0.0
    for name in SWEEPS:
        file = FOLDER / f"{name}.toml"
        if not file.exists():
            raise UserError(f"{file}: no such sweep file; run this study in a clone of the repository")
        result = run(file, runs / name, changes=CHANGES)
        if result.progress.failed:
            first = next(iter(result.progress.failed.values()))
            raise UserError(f"{result.folder}: {len(result.progress.failed)} stages failed ({first})")
        say(f"{name}: {len(result.stages)} stages, {result.seconds / 60:.1f} min")
        grids[name] = classify(read_grid(result.folder))
        hours += sum(spent for _, spent in run_facts(result.folder)["stages"].values())
    return grids, f"The five runs took {60 * hours:.0f} minutes of one core, now or before."
