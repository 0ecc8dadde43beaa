"""Folder of a search for pruned networks: a run folder with a plan, begun with the decisions of the map."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from regimes.config.hpo import INTEGERS, Dimension, Hpo
from regimes.config.keys import digest
from regimes.config.sweep import Sweep
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.context import ContextSpec, RunContext
from regimes.experiment.devices import devices_of
from regimes.experiment.engine_selection import EngineChoice
from regimes.experiment.environment import environment
from regimes.experiment.numerics import Numerics
from regimes.experiment.run import Prepared, prepare
from regimes.experiment.run_metadata import check_numerics, engines_in
from regimes.experiment.store import Store
from regimes.hpo.map_guidance import open_guidance
from regimes.hpo.plan import Say
from regimes.hpo.pruned.cells import PLAN, Cells, sweep_of
from regimes.hpo.pruned.map_decisions import decide
from regimes.hpo.search_options import SearchOptions
from regimes.knobs import Value


def begin(spec: Hpo, options: SearchOptions, say: Say) -> tuple[Cells, dict[str, EngineChoice]]:
    """Open the folder of a search, or begin it: check data, model and recipes, ask the map, choose the engines.

    Raises:
        UserError: they do not fit together; the folder holds something else; the search was begun with another map.
    """
    folder = options.folder
    before = _checked_plan(spec, options)
    plan = before or _plan(spec, options, say)
    if before is None and options.map is not None and options.map.is_dir():
        _begin_as(Store(folder), Store(options.map), options.device)
    prepared = prepare(sweep_of(spec, sample_settings(spec)), folder, options.device, workers=options.workers)
    store = prepared.store
    store.remove_leftovers()
    facts = {"numerics": dataclasses.asdict(prepared.spec.numerics), **prepared.engine_facts, **environment()}
    store.write_json("run.json", facts, keep_existing=True)
    write_checked(folder / PLAN, plan, keep_existing=True)
    return open_cells(spec, folder, devices_of(options.device)[0], prepared)


def open_cells(
    spec: Hpo, folder: Path, device: str, prepared: Prepared | None = None
) -> tuple[Cells, dict[str, EngineChoice]]:
    """Open the folder of a search that has begun, e.g. in a worker process."""
    store = Store(folder)
    info = store.run_info or {}
    numerics = Numerics(**info["numerics"])
    if prepared is None:
        context = RunContext(ContextSpec(spec.data, spec.model, device, numerics, str(folder)))
    else:
        context = prepared.context  # another command may have begun the run meanwhile, with engines of its own
        own = dataclasses.replace(prepared.spec.numerics, dense=numerics.dense, engine=numerics.engine)
        check_numerics(store, own)
        context.spec = dataclasses.replace(prepared.spec, numerics=numerics)
    plan = plan_of(folder)
    if plan["space"]:
        narrowed = {name: Dimension.model_validate(each) for name, each in plan["space"].items()}
        spec = spec.model_copy(update={"space": {name: narrowed[name] for name in spec.space}})
    known = Store(plan["map"]) if plan["map"] and Path(plan["map"]).is_dir() else None
    return Cells(spec, context, store, known, plan["plain_batch"]), engines_in(info)


def plan_of(folder: Path) -> dict[str, Any]:
    """Return the plan of a search that has begun.

    Raises:
        UserError: its file is damaged.
    """
    try:
        return read_checked(folder / PLAN) or {}
    except DamagedFile as error:
        raise UserError(f"{error}; remove it to plan again (trials are kept)") from error


def _checked_plan(spec: Hpo, options: SearchOptions) -> dict[str, Any] | None:
    """The plan of a search that has begun; None before. Refuses a folder that holds something else."""
    folder = options.folder
    plan = plan_of(folder) or None
    if plan is None:
        if (folder / "layout.json").exists():
            raise UserError(
                f"{folder}: holds the run of a sweep; use another --out, and --map {folder} to take its cells as trials"
            )
        return None
    if plan["key"] != _key(spec):
        raise UserError(
            f"{folder}: holds a search with another space, load, data, model or recipe; use another --out or name, or "
            "undo the change"
        )
    if options.map is not None and str(options.map.resolve()) != plan["map"]:
        begun = plan["map"] or "no map"
        raise UserError(f"--map {options.map}: this search was started with {begun}; use another --out")
    return plan


def _plan(spec: Hpo, options: SearchOptions, say: Say) -> dict[str, Any]:
    """The content of the plan's file: the key of the search, its file, and the decisions of the map."""
    file = options.file
    origin = {"file": str(file), "imports_from": str(file.resolve().parent)} if file else {}
    content: dict[str, Any] = {"key": _key(spec), "origin": origin, "map": None, "space": None, "first": []}
    content["plain_batch"] = False
    if options.map is None:
        return content
    decisions = decide(spec, open_guidance(options.map, spec.data, spec.model))
    for each in decisions.notes:
        say(each)
    if options.map.is_dir():
        sweep = Sweep.model_validate(Store(options.map).layout["sweep"])
        content["plain_batch"] = "batch_size" not in [knob.name for knob in sweep.knobs.values()]
    space = {name: each.model_dump(exclude_none=True) for name, each in decisions.space.items()}
    return {**content, "map": str(options.map.resolve()), "space": space, "first": list(decisions.first)}


def _begin_as(store: Store, known: Store, device: str) -> None:
    """Begin a run with the engines of another one on the same kind of device, so that its stages can be taken over."""
    info = known.run_info
    if info is not None and info["numerics"]["device"] == devices_of(device)[0].split(":")[0]:
        store.write_json("run.json", {**info, **environment()}, keep_existing=True)


def _key(spec: Hpo) -> str:
    """Hash of the settings on which values depend; number of trials, batch and sampler may change."""
    content = spec.model_dump(mode="json", exclude={"trials", "final_seeds", "study", "name", "batch", "ladder", "map"})
    return digest([content, spec.study.value, spec.study.against])


def sample_settings(spec: Hpo) -> list[dict[str, Value]]:
    """Return settings as a batch may have them, on which the engines are chosen.

    Every batch size occurs as often as in a batch of trials, with the ends of the other hyperparameters.
    """
    assert spec.pruned is not None
    sizes = spec.space["batch_size"].choices or spec.space["batch_size"].ends if "batch_size" in spec.space else (0,)
    count = max(1, spec.batch // len(spec.pruned.densities) // len(sizes))
    found = []
    for size, number in itertools.product(sizes, range(count)):
        share = number / max(1, count - 1)
        setting = {name: _at(each, share) for name, each in spec.space.items()}
        setting |= {"batch_size": int(size)} if size else {}
        found.append({name: int(value) if name in INTEGERS else value for name, value in setting.items()})
    return list({tuple(each.items()): each for each in found}.values())


def _at(dimension: Dimension, share: float) -> float:
    """The value of a dimension at a share of its range, from 0 to 1."""
    if dimension.choices is not None:
        ordered = sorted(dimension.choices)
        return ordered[round(share * (len(ordered) - 1))]
    low, high = dimension.ends
    return float(low * (high / low) ** share) if dimension.log else float(low + (high - low) * share)
