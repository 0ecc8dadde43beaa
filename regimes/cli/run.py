"""``regimes run``: run a sweep, resume it, or retry its failures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import (
    Address,
    Devices,
    Engine,
    Executor,
    FailFast,
    Gpus,
    Lanes,
    Mixed,
    Out,
    Precision,
    Set,
    StageTimeout,
    Workers,
)
from regimes.errors import UserError


@report_user_errors
def run(
    sweep: Annotated[
        Path, typer.Argument(metavar="SWEEP.toml|RUN", help="The sweep file, or the folder of a run to resume.")
    ],
    out: Out = None,
    workers: Workers = None,
    device: Devices = "cpu",
    engine: Engine = None,
    precision: Precision = None,
    lanes: Lanes = None,
    changes: Set = [],  # noqa: B006
    fail_fast: FailFast = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed stages again.")] = False,
    stage_timeout: StageTimeout = math.inf,
    executor: Executor = "processes",
    address: Address = None,
    gpus: Gpus = None,
    allow_mixed: Mixed = False,
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive", help="Measure only where the map is uncertain, in rounds, until it converges."),
    ] = False,
    budget: Annotated[int | None, typer.Option(min=1, help="With --adaptive: maximum number of cells.")] = None,
) -> None:
    """Run a sweep, or resume it: finished stages are never computed again."""
    from regimes.cli.progress import run_adaptively, run_with_progress

    if budget is not None and not adaptive:
        raise UserError("--budget belongs to --adaptive; add --adaptive or leave --budget out")
    resume = sweep.is_dir()
    if resume and (out is not None or changes or adaptive):
        raise UserError(f"{sweep}: is a run folder; --out, --set and --adaptive need the sweep file instead")
    options: dict[str, Any] = {
        "workers": workers,
        "device": device,
        "engine": engine,
        "precision": precision,
        "changes": changes,
    }
    options |= {"lanes": lanes, "fail_fast": fail_fast, "allow_mixed": allow_mixed, "retry_failed": retry_failed}
    options["stage_timeout"] = stage_timeout
    options |= {"executor": executor, "address": address, "gpus": gpus}
    if adaptive:
        run_adaptively(sweep, out, budget, options)
    else:
        run_with_progress(None if resume else sweep, sweep if resume else out, options)
