"""The head of a run: the numerics and the environment it began with, and when it was worked on."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regimes.errors import UserError
from regimes.experiment.context import Numerics
from regimes.experiment.expand import layout_of
from regimes.experiment.store import Store

if TYPE_CHECKING:
    from regimes.experiment.prepare import Prepared

PACKAGES = ("regimes", "torch", "torchvision", "pyhessian", "optuna", "xarray", "seaborn", "typer", "scikit-learn")


def same_numerics(store: Store, numerics: Numerics) -> None:
    """Refuse to go on with other numerics than those a run began with.

    Raises:
        UserError: says both.
    """
    head = store.head
    # Where run.json was removed, the records remember.
    began = Numerics(**head["numerics"]) if head is not None else next(store.numerics(), numerics.id)
    if began not in (numerics, numerics.id):
        raise UserError(
            f"{store.folder}: this run began with {began}; here it would go on with {numerics}. "
            "Numbers would no longer be equal bit for bit; go on all the same with --allow-mixed, or take another --out"
        )


def start_run(prepared: Prepared, adopt: bool, mixed: bool) -> Prepared:
    """Keep what the run is; another command on this folder may have been quicker, then its engines are adopted."""
    store, spec = prepared.store, prepared.spec
    store.remove_leftovers()
    if store.head is None:
        head = {"numerics": dataclasses.asdict(spec.numerics), "lanes": prepared.lanes, **environment()}
        store.write_json("run.json", head, first=True)
    store.write_json(
        "layout.json",
        {**layout_of(prepared.sweep, prepared.stages, prepared.context.loaded), "origin": prepared.origin},
    )
    head = store.head or {}
    began, lanes = Numerics(**head["numerics"]), prepared.lanes
    if adopt:
        changed = (began.dense, began.engine) != (spec.numerics.dense, spec.numerics.engine)
        lanes = head.get("lanes", lanes) if changed else lanes
        spec = dataclasses.replace(
            spec, numerics=dataclasses.replace(spec.numerics, dense=began.dense, engine=began.engine)
        )
    if not mixed:
        same_numerics(store, spec.numerics)
    return dataclasses.replace(prepared, spec=spec, lanes=lanes)


def environment() -> dict[str, Any]:
    """Hardware and versions, for the report."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": default_workers("cpu"),
        "versions": {name: version(name) for name in PACKAGES},
    }


def default_workers(device: str) -> int:
    """One single-threaded process per core; one process for a CUDA device."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def log(store: Store, seconds: float) -> None:
    """Append this invocation's wall time; one short line, which the system writes in one piece."""
    line = json.dumps({"finished": time.strftime("%Y-%m-%d %H:%M"), "seconds": round(seconds, 1)})
    with open(store.folder / "log.jsonl", "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
