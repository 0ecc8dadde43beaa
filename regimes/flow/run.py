"""Run a sweep: the experiment in a few lines."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regimes.errors import UserError
from regimes.flow.engine import choose_engine
from regimes.flow.executors import Stop, by_processes, in_process
from regimes.flow.lab import Lab, LabSpec, Numerics, numerics_of
from regimes.flow.plan import Progress, fleets, lay_out, layout_of, survey
from regimes.flow.stage import Outcome, Stage
from regimes.flow.store import Store, open_store
from regimes.registry import allow_imports_from, load
from regimes.spec.check import read_sweep
from regimes.spec.sweep import Sweep
from regimes.training import ENGINES

Watch = Callable[[Stage, Outcome], None]
PACKAGES = ("regimes", "torch", "torchvision", "pyhessian", "optuna", "xarray", "seaborn", "typer", "scikit-learn")


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


@dataclass(frozen=True)
class Prepared:
    """A sweep with its data loaded, its stages laid out and its folder surveyed.

    ``origin`` says which file the sweep came from, and the folder that its user's own modules stand in.
    """

    sweep: Sweep
    spec: LabSpec
    lab: Lab
    store: Store
    stages: list[Stage]
    progress: Progress
    origin: dict[str, str]


def prepare(
    sweep: Sweep | str | Path | None,
    out: str | Path | None = None,
    device: str = "cpu",
    engine: str | None = None,
    mixed: bool = False,
) -> Prepared:
    """Load the data, lay the stages out and look at what the folder already holds; writes nothing."""
    if sweep is None:
        sweep, origin = stored_sweep(out or "")
    elif isinstance(sweep, Sweep):
        origin = {"file": "a sweep made in Python", "imports_from": os.getcwd()}
    else:
        origin = {"file": str(sweep), "imports_from": str(Path(sweep).resolve().parent)}
        sweep = read_sweep(sweep)
    store = Store(Path("runs") / sweep.name if out is None else out)
    if engine is not None:
        load(ENGINES, engine, "engine")
    head = store.head
    began = Numerics(**head["numerics"]) if head else None
    numerics = numerics_of(device, *((began.dense, began.engine) if began and not engine else [engine or "eager"] * 2))
    lab = Lab(LabSpec(sweep.data, sweep.model, device, numerics, str(store.folder)))
    lab.check_model()
    stages = lay_out(sweep, lab)
    if engine is None and began is None:
        numerics = _fastest(numerics, sweep, stages, lab)
    if (
        began is not None or store.head is None
    ):  # else another command has just begun this run: `run` adopts its engines
        _same_numerics(store, numerics, mixed)
    spec = dataclasses.replace(lab.spec, numerics=numerics, fingerprint=lab.loaded.fingerprint)
    lab.spec = spec
    return Prepared(sweep, spec, lab, store, stages, survey(stages, store), origin)


def run(
    sweep: Sweep | str | Path | None,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    device: str = "cpu",
    engine: str | None = None,
    fail_fast: bool = False,
    allow_mixed: bool = False,
    retry_failed: bool = False,
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
        fail_fast: stop at the first failure instead of going on with the rest.
        allow_mixed: go on although the run began with other numerics (device type, torch version, ...).
        retry_failed: do failed stages again.
        on_start: called once, when it is known what there is to do.
        watch: called for every finished or failed stage.

    Raises:
        UserError: a mistake in the sweep, or numerics that do not fit the run.
    """
    started = time.perf_counter()
    prepared = prepare(sweep, out, device, engine, allow_mixed)
    store, stages = prepared.store, prepared.stages
    prepared = _write_head(prepared, adopt=engine is None and not allow_mixed)
    if retry_failed:
        for key in prepared.progress.failed:
            store.failure_file(key).unlink(missing_ok=True)
        prepared = dataclasses.replace(prepared, progress=survey(stages, store))
    on_start(prepared)
    if prepared.progress.damaged:
        still = survey(stages, store).damaged  # another command may have mended them meanwhile
        for key in still.keys() & prepared.progress.damaged.keys():
            store.drop(key)
    by_key = {stage.key: stage for stage in stages}

    def report(outcome: Outcome) -> None:
        watch(by_key[outcome.key], outcome)
        if fail_fast and outcome.error is not None:
            raise Stop

    processes = default_workers(device) if workers is None else workers
    numerics = prepared.spec.numerics
    capacity = {
        kind: load(ENGINES, engine, "engine").capacity
        for kind, engine in (("train", numerics.dense), ("retrain", numerics.engine))
    }
    work = fleets(prepared.progress.todo, capacity, processes or 1)
    try:
        if processes:
            by_processes(work, prepared.spec, report, processes)
        else:
            in_process(work, prepared.spec, report)
    except Stop:
        pass
    finally:
        seconds = time.perf_counter() - started
        _log(store, seconds)
    return Result(store.folder, stages, survey(stages, store), seconds)


def _fastest(numerics: Numerics, sweep: Sweep, stages: Sequence[Stage], lab: Lab) -> Numerics:
    """The engines that are fastest for the networks of a sweep, chosen for dense and retrained ones apart."""
    dense = [sweep.dense_recipe(temperature) for temperature in sweep.temperatures()]
    # Snapshots of one training are one network; trainings that differ in batch size cannot go together.
    alike = Counter(recipe.batch_size for recipe in {each.model_copy(update={"stop": None}) for each in dense})
    retrained = sum(stage.kind == "retrain" for stage in stages)
    return dataclasses.replace(
        numerics,
        dense=choose_engine(lab, dense, min(alike.values()) * sweep.dense_seeds),
        engine=choose_engine(lab, [sweep.retrain], retrained),
    )


def stored_sweep(folder: str | Path) -> tuple[Sweep, dict[str, str]]:
    """The sweep that a run's folder was last made with, and its origin.

    Raises:
        UserError: there is no run in the folder.
    """
    layout = open_store(folder).layout
    origin: dict[str, str] = layout["origin"]
    allow_imports_from(origin["imports_from"])
    return Sweep.model_validate(layout["sweep"]), origin


def default_workers(device: str) -> int:
    """One single-threaded process per core; one process for a CUDA device."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _same_numerics(store: Store, numerics: Numerics, mixed: bool) -> None:
    head = store.head
    if mixed:
        return
    # Where run.json was removed, the records remember.
    began = Numerics(**head["numerics"]) if head is not None else next(store.numerics(), numerics.id)
    if began not in (numerics, numerics.id):
        raise UserError(
            f"{store.folder}: this run began with {began}; here it would go on with {numerics}. "
            "Numbers would no longer be equal bit for bit; go on all the same with --allow-mixed, or take another --out"
        )


def _write_head(prepared: Prepared, adopt: bool) -> Prepared:
    """Keep what the run is; another command on this folder may have been quicker, then its engines are adopted."""
    store, spec = prepared.store, prepared.spec
    store.remove_leftovers()
    if store.head is None:
        store.write_json("run.json", {"numerics": dataclasses.asdict(spec.numerics), **environment()}, first=True)
    store.write_json("layout.json", {**layout_of(prepared.sweep, prepared.stages), "origin": prepared.origin})
    began = Numerics(**(store.head or {})["numerics"])
    if adopt:
        spec = dataclasses.replace(
            spec, numerics=dataclasses.replace(spec.numerics, dense=began.dense, engine=began.engine)
        )
        _same_numerics(store, spec.numerics, mixed=False)
    return dataclasses.replace(prepared, spec=spec)


def environment() -> dict[str, Any]:
    """Hardware and versions, for the report."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": default_workers("cpu"),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _log(store: Store, seconds: float) -> None:
    """Append this invocation's wall time; one short line, which the system writes in one piece."""
    line = json.dumps({"finished": time.strftime("%Y-%m-%d %H:%M"), "seconds": round(seconds, 1)})
    with open(store.folder / "log.jsonl", "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
