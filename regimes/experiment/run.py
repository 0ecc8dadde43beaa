"""Run a sweep: expand it into stages, scan what is done, execute the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regimes.config.sweep import Sweep
from regimes.config.sweep_file import read_sweep
from regimes.errors import UserError
from regimes.experiment.atomic_files import Record
from regimes.experiment.claims import Claims
from regimes.experiment.context import ContextSpec, RunContext
from regimes.experiment.devices import devices_of
from regimes.experiment.engine_selection import EngineChoice, select_engines, with_lanes
from regimes.experiment.executors import Pool, StopRun, by_processes, in_process, pool_of
from regimes.experiment.expand import cell_stages, check_sweep, dense_stages, without_duplicates
from regimes.experiment.memory import release_memory
from regimes.experiment.numerics import Numerics, numerics_of
from regimes.experiment.preflight import check_precision
from regimes.experiment.run_metadata import check_numerics, engines_in, log, start_run
from regimes.experiment.schedule import Progress, fleets, scan_store, with_dependencies
from regimes.experiment.stages.stage import Outcome, Stage
from regimes.experiment.store import Store, open_store
from regimes.registry import allow_imports_from, lookup
from regimes.training import ENGINES
from regimes.training.precision import PRECISIONS
from regimes.training.vmap_engine import MAX_LANES

Watch = Callable[[Stage, Outcome], None]


@dataclass(frozen=True)
class Prepared:
    """A sweep with its data loaded, its stages listed and its folder scanned.

    Attributes:
        sweep: the sweep.
        spec: description of the run context, for worker processes.
        context: the run context.
        store: the store of the run folder.
        stages: all stages of the sweep, each after those it needs.
        progress: the stages that are done, pending and failed.
        origin: the file that the sweep was read from, and the folder of user modules.
        engines: {"train": ..., "retrain": ...}, the engines with the number of networks they train at once.
        devices: normalised names of the workers' devices; the context is on the first one.
    """

    sweep: Sweep
    spec: ContextSpec
    context: RunContext
    store: Store
    stages: list[Stage]
    progress: Progress
    origin: dict[str, str]
    engines: dict[str, EngineChoice]
    devices: tuple[str, ...]

    @property
    def lanes(self) -> dict[str, int]:
        """Number of networks trained at once, {"train": n, "retrain": m}."""
        return {kind: choice.lanes for kind, choice in self.engines.items()}

    @property
    def engine_facts(self) -> dict[str, Any]:
        """The engines as in run.json: ``lanes`` and, with the reasons, ``engines``."""
        chosen = {kind: {"engine": each.engine, "reason": each.reason} for kind, each in self.engines.items()}
        return {"lanes": self.lanes, "engines": chosen}


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
        folder: the run folder.
        stages: all stages of the sweep.
        progress: stages done, pending and failed after the run.
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
    lanes: int | None = None,
    fail_fast: bool = False,
    allow_mixed: bool = False,
    retry_failed: bool = False,
    stage_timeout: float = math.inf,
    executor: str = "processes",
    address: str | None = None,
    gpus: float | None = None,
    changes: Sequence[str] = (),
    only: Callable[[Stage], bool] | None = None,
    on_start: Callable[[Prepared], None] = lambda prepared: None,
    watch: Watch = lambda stage, outcome: None,
) -> Result:
    """Run a sweep, or resume it: finished stages are never computed again.

    Args:
        sweep: a sweep, or the path of its TOML file; None: the sweep that the folder was last run with.
        out: the run folder; None: ``runs/NAME``.
        workers: worker processes; None: one per core, or one per CUDA device; 0: run in this process, on the first
            device.
        device: "cpu", "cuda", "cuda:1", or several of one model for the workers in turn, "cuda:0,cuda:1".
        engine: a name in `ENGINES`; None: the run's own, or the fastest for this model on this machine.
        precision: precision of training steps, "float32" or "bfloat16"; None: the run's own, or float32.
        lanes: number of networks that the engines stacked and graphed train at once, at most 64; fewer if they do not
            fit into memory, and a power of two with stacked. None: the run's own, or the fastest.
        fail_fast: stop at the first failure instead of continuing with the rest.
        allow_mixed: resume although the run's numerics (device type, torch version, ...) differ.
        retry_failed: run failed stages again.
        stage_timeout: seconds without a result after which a worker is killed, and its work tried again.
        executor: "processes" of this machine, or "ray": workers of a Ray cluster, see `ray_cluster`.
        address: with Ray, the address of the cluster; None: this machine alone.
        gpus: with Ray, GPUs of each worker, e.g. 0.25; None: 1 with a CUDA device.
        changes: overrides of keys of the sweep file, "recipe.epochs=20" each.
        only: selects the stages to run now, with those they need; None: all. The plan remains the whole sweep's.
        on_start: called once before the work begins.
        watch: called for every finished or failed stage.

    Raises:
        UserError: an error in the sweep, numerics that differ from the run's, ``lanes`` without an engine for them, or
            steps that cannot be in the run's precision.
    """
    started = time.perf_counter()
    with pool_of(executor, workers, devices_of(device), address, gpus, stage_timeout) as pool:
        prepared = prepare(sweep, out, device, engine, allow_mixed, precision, pool.workers or 1, changes, lanes)
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
        _work(prepared, pool, watch, fail_fast, started)
    return Result(store.folder, stages, scan_store(stages, store, prepared.progress), time.perf_counter() - started)


def _work(prepared: Prepared, pool: Pool, watch: Watch, fail_fast: bool, started: float) -> None:
    """Do the pending stages, beside other commands on the same folder, and log their number."""
    by_key, ours = {stage.key: stage for stage in prepared.stages}, 0

    def report(outcome: Outcome) -> None:
        nonlocal ours
        ours += outcome.ours
        watch(by_key[outcome.key], outcome)
        if fail_fast and outcome.error is not None:
            raise StopRun

    try:
        with Claims(prepared.store.folder, pool.workers or 1) as claims, contextlib.suppress(StopRun):
            workers_in_all = sum((owner.workers for owner in claims.others()), pool.workers or 1)
            work = fleets(prepared.progress.todo, prepared.lanes, workers_in_all)
            if pool.workers:
                by_processes(work, prepared.spec, claims, report, pool, prepared.devices)
            else:
                in_process(work, RunContext(prepared.spec), claims, report)
    finally:
        with contextlib.suppress(OSError):  # a full disk, which is reported already
            log(prepared.store, time.perf_counter() - started, ours)


def expand(sweep: Sweep, context: RunContext) -> list[Stage]:
    """Return every stage of a sweep, each after those it needs: train, prune, retrain, measure.

    Raises:
        UserError: data, recipes, metrics and the user's own functions do not fit together.
    """
    check_sweep(sweep, context)
    stages: list[Stage] = []
    for dense in dense_stages(sweep, context):
        stages += [dense, *cell_stages(sweep, dense)]
    return without_duplicates(stages)


def prepare(
    sweep: Sweep | str | Path | None,
    out: str | Path | None = None,
    device: str = "cpu",
    engine: str | None = None,
    mixed: bool = False,
    precision: str | None = None,
    workers: int = 1,
    changes: Sequence[str] = (),
    lanes: int | None = None,
) -> Prepared:
    """Load the data, list the stages and scan the folder, without writing anything; for the arguments see `run`.

    Raises:
        UserError: as for `run`.
    """
    devices = devices_of(device)
    if lanes is not None and not 1 <= lanes <= MAX_LANES:
        raise UserError(f"--lanes {lanes}: allowed: 1 to {MAX_LANES}")
    sweep, origin = _sweep_and_origin(sweep, out, changes)
    store = Store(Path("runs") / sweep.name if out is None else out)
    if engine is not None:
        lookup(ENGINES, engine, "engine")
    info = store.run_info
    began = Numerics(**info["numerics"]) if info else None
    usual = began or Numerics("eager", "eager", "", "", "", "")
    dense, other = (engine or usual.dense, engine or usual.engine)
    numerics = numerics_of(devices[0], dense, other, precision or usual.precision)
    context = RunContext(ContextSpec(sweep.data, sweep.model, devices[0], numerics, str(store.folder), None, devices))
    for size in sweep.sizes():
        context.sized(size).check_model()
    stages, sharing = expand(sweep, context), math.ceil(workers / len(devices))
    known = numerics if engine or info else numerics_from_records(numerics, store, precision)
    check_precision(sweep, context, known or numerics)
    if known is None:
        engines = select_engines(context, sweep, stages, workers, sharing, lanes)
        numerics = dataclasses.replace(numerics, dense=engines["train"].engine, engine=engines["retrain"].engine)
    else:
        numerics, reason = known, "chosen with --engine" if engine else "as in the run's records"
        given, new = _given_engines(numerics, info, reason), engine is not None and info is None
        engines = with_lanes(given, context, sweep, sharing, lanes, new)
    if lanes is not None and all(choice.engine == "eager" for choice in engines.values()):
        reasons = "; ".join(dict.fromkeys(choice.reason for choice in engines.values()))
        raise UserError(f"--lanes {lanes}: networks are trained one by one, by the engine eager ({reasons})")
    release_memory(context.device)
    if not mixed and (began is not None or store.run_info is None):
        check_numerics(store, numerics)  # else another process has just begun the run: `start_run` adopts its engines
    spec = dataclasses.replace(context.spec, numerics=numerics, fingerprint=context.loaded.fingerprint)
    context.spec = spec
    return Prepared(sweep, spec, context, store, stages, scan_store(stages, store), origin, engines, devices)


def _sweep_and_origin(
    sweep: Sweep | str | Path | None, out: str | Path | None, changes: Sequence[str]
) -> tuple[Sweep, dict[str, str]]:
    if sweep is None:
        return stored_sweep(out or "")
    if isinstance(sweep, Sweep):
        return sweep, {"file": "a sweep made in Python", "imports_from": os.getcwd()}
    overrides = "".join(f" --set {shlex.quote(change)}" for change in changes)
    origin = {"file": f"{sweep}{overrides}", "imports_from": str(Path(sweep).resolve().parent)}
    return read_sweep(sweep, changes), origin


def stored_sweep(folder: str | Path) -> tuple[Sweep, dict[str, str]]:
    """Return the sweep that a folder was last run with, and its origin.

    Raises:
        UserError: there is no run in the folder, or it holds the trials of a search.
    """
    layout = open_store(folder).layout
    origin: dict[str, str] = layout["origin"]
    if origin.get("search"):
        raise UserError(f"{folder}: holds the trials of a search; go on with: regimes hpo FILE --out {folder}")
    allow_imports_from(origin["imports_from"])
    return Sweep.model_validate(layout["sweep"]), origin


def _given_engines(numerics: Numerics, info: Record | None, reason: str) -> dict[str, EngineChoice]:
    """The engines of the numerics, with the run's own lanes and reasons if it began with them."""
    found = {"train": EngineChoice(numerics.dense, 0, reason), "retrain": EngineChoice(numerics.engine, 0, reason)}
    if info is not None:
        found |= {kind: own for kind, own in engines_in(info).items() if own.engine == found[kind].engine}
    return found


def numerics_from_records(numerics: Numerics, store: Store, precision: str | None) -> Numerics | None:
    """Return the numerics of a run whose run.json was removed, by the id in its records; None if there are none."""
    known = next(store.numerics(), None)
    if known is None:
        return None
    choices = itertools.product(ENGINES, ENGINES, [precision] if precision else PRECISIONS)
    candidates = (
        dataclasses.replace(numerics, dense=dense, engine=engine, precision=steps) for dense, engine, steps in choices
    )
    return next((candidate for candidate in candidates if candidate.id == known), None)


def forget_damaged(prepared: Prepared) -> None:
    """Drop stages whose files are damaged, so that they are computed again."""
    for key in prepared.progress.damaged:
        if not prepared.store.is_intact(key):  # another process may have repaired it meanwhile
            prepared.store.drop(key)
