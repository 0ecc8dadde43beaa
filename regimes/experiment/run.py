"""Run a sweep: the experiment in a few lines."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regimes.config.sweep import Sweep
from regimes.experiment.environment import default_workers
from regimes.experiment.executors import StopRun, by_processes, in_process
from regimes.experiment.prepare import Prepared, prepare
from regimes.experiment.run_metadata import log, start_run
from regimes.experiment.schedule import Progress, fleets, scan_store, with_dependencies
from regimes.experiment.stages.stage import Outcome, Stage

Watch = Callable[[Stage, Outcome], None]


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Attributes:
        folder: of the run.
        stages: of the whole plan.
        progress: the survey after the run.
        seconds: wall time of this invocation.
    """

    folder: Path
    stages: Sequence[Stage]
    progress: Progress
    seconds: float


def run(
    sweep: Sweep | str | Path | None,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    device: str = "cpu",
    engine: str | None = None,
    precision: str | None = None,
    fail_fast: bool = False,
    allow_mixed: bool = False,
    retry_failed: bool = False,
    changes: Sequence[str] = (),
    only: Callable[[Stage], bool] | None = None,
    on_start: Callable[[Prepared], None] = lambda prepared: None,
    watch: Watch = lambda stage, outcome: None,
) -> Result:
    """Run a sweep, or finish it: stages that are done are never done again.

    Args:
        sweep: a sweep, or the path of its TOML file; None: the one that the folder was last run with.
        out: the run's folder; None: ``runs/NAME``.
        workers: processes; None: one per core (one on a CUDA device); 0: in this process.
        device: "cpu", "cuda", "cuda:1", ...
        engine: a name in `ENGINES`; None: the one the run began with, or the fastest for this model on this machine.
        precision: of training steps, "float32" or "bfloat16"; None: the one the run began with, or float32.
        fail_fast: stop at the first failure instead of going on with the rest.
        allow_mixed: go on although the run began with other numerics (device type, torch version, ...).
        retry_failed: do failed stages again.
        changes: keys of the sweep file to set anew, "recipe.epochs=20" each.
        only: whether a stage is to be done now, with those it needs; None: all. The plan stays the whole sweep's.
        on_start: called once, when it is known what there is to do.
        watch: called for every finished or failed stage.

    Raises:
        UserError: a mistake in the sweep, or numerics that do not fit the run.
    """
    started = time.perf_counter()
    processes = default_workers(device) if workers is None else workers
    prepared = prepare(sweep, out, device, engine, allow_mixed, precision, processes or 1, changes)
    store, stages = prepared.store, prepared.stages
    prepared = start_run(prepared, adopt=engine is None and not allow_mixed, mixed=allow_mixed)
    if retry_failed:
        for key in prepared.progress.failed:
            store.failure_file(key).unlink(missing_ok=True)
        prepared = dataclasses.replace(prepared, progress=scan_store(stages, store))
    if only is not None:
        todo = with_dependencies(prepared.progress.todo, only)
        prepared = dataclasses.replace(prepared, progress=dataclasses.replace(prepared.progress, todo=todo))
    on_start(prepared)
    forget_damaged(prepared)
    by_key = {stage.key: stage for stage in stages}

    def report(outcome: Outcome) -> None:
        watch(by_key[outcome.key], outcome)
        if fail_fast and outcome.error is not None:
            raise StopRun

    work = fleets(prepared.progress.todo, prepared.lanes, processes or 1)
    try:
        if processes:
            by_processes(work, prepared.spec, report, processes)
        else:
            in_process(work, prepared.spec, report)
    except StopRun:
        pass
    finally:
        seconds = time.perf_counter() - started
        log(store, seconds)
    return Result(store.folder, stages, scan_store(stages, store), seconds)


def forget_damaged(prepared: Prepared) -> None:
    """Drop stages whose files are not what was written, so that they are done again."""
    if prepared.progress.damaged:
        still = scan_store(prepared.stages, prepared.store).damaged  # another command may have mended them meanwhile
        for key in still.keys() & prepared.progress.damaged.keys():
            prepared.store.drop(key)
