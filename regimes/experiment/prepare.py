"""Prepare a run: read the sweep, load the data, try the model, choose the engines, lay out and survey the stages."""

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
from regimes.experiment.context import ContextSpec, Numerics, RunContext, numerics_of
from regimes.experiment.engine_selection import EngineChoice, lanes_that_fit, select_engines
from regimes.experiment.expand import expand
from regimes.experiment.run_metadata import same_numerics
from regimes.experiment.schedule import Progress, scan_store
from regimes.experiment.stages.stage import Stage
from regimes.experiment.store import Store, open_store
from regimes.registry import allow_imports_from, load
from regimes.training import ENGINES
from regimes.training.precision import PRECISIONS


@dataclass(frozen=True)
class Prepared:
    """A sweep with its data loaded, its stages laid out and its folder surveyed.

    ``lanes`` says how many networks are trained at once, {"train": n, "retrain": m}; ``origin`` says which file the
    sweep came from, and the folder that its user's own modules stand in.
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
    """Load the data, lay the stages out and look at what the folder already holds; writes nothing."""
    if sweep is None:
        sweep, origin = stored_sweep(out or "")
    elif isinstance(sweep, Sweep):
        origin = {"file": "a sweep made in Python", "imports_from": os.getcwd()}
    else:
        asked = "".join(f" --set {shlex.quote(each)}" for each in changes)
        origin = {"file": f"{sweep}{asked}", "imports_from": str(Path(sweep).resolve().parent)}
        sweep = read_sweep(sweep, changes)
    store = Store(Path("runs") / sweep.name if out is None else out)
    if engine is not None:
        load(ENGINES, engine, "engine")
    head = store.head
    began = Numerics(**head["numerics"]) if head else None
    usual = began or Numerics("eager", "eager", "", "", "", "")
    dense, other = (engine or usual.dense, engine or usual.engine)
    numerics = numerics_of(device, dense, other, precision or usual.precision)
    context = RunContext(ContextSpec(sweep.data, sweep.model, device, numerics, str(store.folder)))
    for size in sweep.sizes():
        context.sized(size).check_model()
    stages = expand(sweep, context)
    lanes: dict[str, int] = {}
    if engine is None and began is None:
        known = remembered(numerics, store, precision)
        numerics, lanes = (known, {}) if known else _choose(numerics, select_engines(context, sweep, stages, workers))
    lanes = lanes or lanes_of(numerics, (head or {}).get("lanes", {}), sweep, context, workers)
    if not mixed and (began is not None or store.head is None):
        same_numerics(store, numerics)  # else another command has just begun this run: `begin` adopts its engines
    spec = dataclasses.replace(context.spec, numerics=numerics, fingerprint=context.loaded.fingerprint)
    context.spec = spec
    return Prepared(sweep, spec, context, store, stages, scan_store(stages, store), origin, lanes)


def stored_sweep(folder: str | Path) -> tuple[Sweep, dict[str, str]]:
    """The sweep that a run's folder was last made with, and its origin.

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


def lanes_of(
    numerics: Numerics, usual: Mapping[str, int], sweep: Sweep, context: RunContext, workers: int
) -> dict[str, int]:
    """How many networks each engine is given at once: as the run had it, or the usual number; less if memory is short.

    The number is no part of the numerics: bits do not depend on it.
    """
    dense = [sweep.dense_recipe(temperature) for temperature in sweep.temperatures()]
    largest = {"train": max(dense, key=lambda recipe: recipe.batch_size), "retrain": sweep.retrain}
    engines = {"train": numerics.dense, "retrain": numerics.engine}
    labs = [context.sized(size) for size in sweep.sizes()]
    wanted = {kind: count for kind, count in usual.items() if count > 1}
    return {
        kind: 1
        if engine == "eager"
        else min(lanes_that_fit(each, engine, largest[kind], wanted.get(kind, 0), workers) for each in labs)
        for kind, engine in engines.items()
    }


def remembered(numerics: Numerics, store: Store, precision: str | None) -> Numerics | None:
    """The numerics of a run whose run.json was removed, by the id that its records bear; None where there are none."""
    known = next(store.numerics(), None)
    if known is None:
        return None
    choices = itertools.product(ENGINES, ENGINES, [precision] if precision else PRECISIONS)
    candidates = (
        dataclasses.replace(numerics, dense=dense, engine=engine, precision=each) for dense, engine, each in choices
    )
    return next((each for each in candidates if each.id == known), None)
