"""Preparation of a run: read the sweep, load the data, check the model, choose engines, list stages and progress."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regimes.config.sweep import Sweep
from regimes.config.sweep_file import read_sweep
from regimes.experiment.context import ContextSpec, RunContext
from regimes.experiment.engine_selection import EngineChoice, lanes_that_fit, select_engines
from regimes.experiment.expand import expand
from regimes.experiment.numerics import Numerics, numerics_of
from regimes.experiment.run_metadata import check_numerics
from regimes.experiment.schedule import Progress, scan_store
from regimes.experiment.stages.stage import Stage
from regimes.experiment.store import Store, open_store
from regimes.registry import allow_imports_from, lookup
from regimes.training import ENGINES
from regimes.training.precision import PRECISIONS


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
        lanes: number of networks trained at once, {"train": n, "retrain": m}.
    """

    sweep: Sweep
    spec: ContextSpec
    context: RunContext
    store: Store
    stages: list[Stage]
    progress: Progress
    origin: dict[str, str]
    lanes: dict[str, int]


def prepare(
    sweep: Sweep | str | Path | None,
    out: str | Path | None = None,
    device: str = "cpu",
    engine: str | None = None,
    mixed: bool = False,
    precision: str | None = None,
    workers: int = 1,
    changes: Sequence[str] = (),
) -> Prepared:
    """Load the data, list the stages and scan the folder, without writing anything; for the arguments see `run`.

    Raises:
        UserError: an error in the sweep, or numerics that differ from the run's.
    """
    if sweep is None:
        sweep, origin = stored_sweep(out or "")
    elif isinstance(sweep, Sweep):
        origin = {"file": "a sweep made in Python", "imports_from": os.getcwd()}
    else:
        overrides = "".join(f" --set {shlex.quote(change)}" for change in changes)
        origin = {"file": f"{sweep}{overrides}", "imports_from": str(Path(sweep).resolve().parent)}
        sweep = read_sweep(sweep, changes)
    store = Store(Path("runs") / sweep.name if out is None else out)
    if engine is not None:
        lookup(ENGINES, engine, "engine")
    info = store.run_info
    began = Numerics(**info["numerics"]) if info else None
    usual = began or Numerics("eager", "eager", "", "", "", "")
    dense, other = (engine or usual.dense, engine or usual.engine)
    numerics = numerics_of(device, dense, other, precision or usual.precision)
    context = RunContext(ContextSpec(sweep.data, sweep.model, device, numerics, str(store.folder)))
    for size in sweep.sizes():
        context.sized(size).check_model()
    stages = expand(sweep, context)
    lanes: dict[str, int] = {}
    if engine is None and began is None:
        known = numerics_from_records(numerics, store, precision)
        numerics, lanes = (known, {}) if known else _choose(numerics, select_engines(context, sweep, stages, workers))
    lanes = lanes or lane_counts(numerics, (info or {}).get("lanes", {}), sweep, context, workers)
    if not mixed and (began is not None or store.run_info is None):
        check_numerics(
            store, numerics
        )  # otherwise another process has just started this run: `start_run` adopts its engines
    spec = dataclasses.replace(context.spec, numerics=numerics, fingerprint=context.loaded.fingerprint)
    context.spec = spec
    return Prepared(sweep, spec, context, store, stages, scan_store(stages, store), origin, lanes)


def stored_sweep(folder: str | Path) -> tuple[Sweep, dict[str, str]]:
    """Return the sweep that a folder was last run with, and its origin.

    Raises:
        UserError: there is no run in the folder.
    """
    layout = open_store(folder).layout
    origin: dict[str, str] = layout["origin"]
    allow_imports_from(origin["imports_from"])
    return Sweep.model_validate(layout["sweep"]), origin


def _choose(numerics: Numerics, choices: dict[str, EngineChoice]) -> tuple[Numerics, dict[str, int]]:
    engines = {"dense": choices["train"].engine, "engine": choices["retrain"].engine}
    return dataclasses.replace(numerics, **engines), {kind: choice.lanes for kind, choice in choices.items()}


def lane_counts(
    numerics: Numerics, usual: Mapping[str, int], sweep: Sweep, context: RunContext, workers: int
) -> dict[str, int]:
    """Return the number of lanes for "train" and "retrain": the run's own or the default, fewer if memory is short.

    The number is not part of the numerics, because bits do not depend on it.
    """
    dense = [sweep.dense_recipe(temperature) for temperature in sweep.temperatures()]
    largest = {"train": max(dense, key=lambda recipe: recipe.batch_size), "retrain": sweep.retrain}
    engines = {"train": numerics.dense, "retrain": numerics.engine}
    contexts = [context.sized(size) for size in sweep.sizes()]
    wanted = {kind: count for kind, count in usual.items() if count > 1}
    return {
        kind: 1
        if engine == "eager"
        else min(lanes_that_fit(each, engine, largest[kind], wanted.get(kind, 0), workers) for each in contexts)
        for kind, engine in engines.items()
    }


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
