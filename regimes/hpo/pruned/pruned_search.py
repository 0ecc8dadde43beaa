"""A whole search for pruned networks: ``regimes hpo`` with ``objective = "pruned"``; resumes where it stopped."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from regimes.config.hpo import INTEGERS, Dimension, Hpo
from regimes.config.keys import digest
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.context import ContextSpec, RunContext
from regimes.experiment.devices import devices_of
from regimes.experiment.engine_selection import EngineChoice
from regimes.experiment.environment import environment
from regimes.experiment.executors import by_processes, in_process
from regimes.experiment.numerics import Numerics
from regimes.experiment.run import Prepared, prepare
from regimes.experiment.run_metadata import check_numerics, engines_in
from regimes.experiment.schedule import fleets, scan_store
from regimes.experiment.stages.stage import Stage
from regimes.experiment.store import Store
from regimes.hpo.map_guidance import open_guidance
from regimes.hpo.optimize_loop import Limits, run_trials, trials_left
from regimes.hpo.optuna_study import JOURNAL, open_storage, open_study
from regimes.hpo.plan import PLAN, Say
from regimes.hpo.pruned.cell_runner import SEARCH_ORIGIN, CellRunner, Look, space_of
from regimes.hpo.pruned.cells import DENSITY, Cells, sweep_of
from regimes.hpo.pruned.known_cells import add_known_cells
from regimes.hpo.pruned.map_decisions import decide
from regimes.hpo.pruned.network_cost import UNITS
from regimes.hpo.pruned.outcome import best_of, spending, tested
from regimes.hpo.search_options import RESULT, SearchOptions
from regimes.hpo.until_done import until_done
from regimes.hpo.worker_pool import WorkerConfig, run_workers
from regimes.knobs import Value


def search_pruned(spec: Hpo, options: SearchOptions, say: Say, look: Look | None = None) -> dict[str, Any]:
    """Run or resume a search for pruned networks; returns the result as plain data, also written to ``result.json``.

    Args:
        spec: the search's settings.
        options: folder, map, storage, limits and device.
        say: called with decisions and progress, in words.
        look: called with the study after every trial, or twice a second if there are several processes.

    Raises:
        UserError: the map, storage, study or folder does not fit; no trial finished.
    """
    deadline = time.monotonic() + options.timeout
    devices = devices_of(options.device)
    cells, engines = begin(spec, options, say)
    spec = cells.spec
    url = options.storage or str(options.folder / JOURNAL)
    study = study_of(spec, cells.context, open_storage(url))
    _take_from_map(study, cells, options, say)
    processes, limits = options.workers > 1, Limits(spec.trials, deadline)

    def work() -> None:
        if not processes:
            run_trials(study, CellRunner(spec, cells, engines, look, deadline), spec.batch, limits)
            return
        ends = time.time() + deadline - time.monotonic()
        config = WorkerConfig(options.folder, url, devices, max(1, spec.batch // options.workers), ends)
        run_workers(config, spec, [study], options.workers, lambda: look(study) if look else None)

    def is_idle() -> bool:
        return trials_left(study, space_of(spec), limits) <= 0

    until_done([study], work, is_idle, deadline, options.take_over, say)
    best = best_of(study)

    def do(stages: Sequence[Stage]) -> None:
        todo = scan_store(list({each.key: each for each in stages}.values()), cells.store).todo
        fresh = fleets(todo, {kind: each.lanes for kind, each in engines.items()}, options.workers)
        if processes:
            by_processes(fresh, cells.context.spec, lambda outcome: None, options.workers, devices)
        else:
            in_process(fresh, cells.context.spec, lambda outcome: None)

    return _finish(spec, study, cells, best, do, options, say)


def _finish(
    spec: Hpo, study: optuna.Study, cells: Cells, best: Any, do: Any, options: SearchOptions, say: Say
) -> dict[str, Any]:
    key = digest([[each.number, each.params, each.values] for each in best] + [spec.final_seeds, spec.seed])
    try:
        before = read_checked(options.folder / RESULT)
    except DamagedFile:
        before = None
    result: dict[str, Any] = {"name": spec.name, "objective": "pruned", "key": key, "value": spec.study.value}
    if before is not None and before["key"] == key:
        result["best"] = before["best"]  # evaluate on the test split only once
    else:
        many = f"the {len(best)} best trials are" if len(best) > 1 else f"the best trial, {best[0].number}, is"
        say(f"{many} trained again with {spec.final_seeds} fresh seeds and tested")
        result["best"] = tested(best, spec, cells, do)
    recipe = spec.recipe
    title = "error" if cells.context.fraction(recipe) else "loss"
    result |= {
        "against": spec.study.against,
        "against_unit": UNITS[spec.study.against],
        "fraction": cells.context.fraction(recipe),
        "title": title,
        "space": {name: each.model_dump() for name, each in spec.space.items()},
        "densities": list(spec.pruned.densities if spec.pruned else ()),
        "spending": spending(study, spec, cells),
        "trials": [_facts(each) for each in study.get_trials(deepcopy=False) if each.state.is_finished()],
    }
    write_checked(options.folder / RESULT, result)
    return result


def _facts(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    done = trial.state == optuna.trial.TrialState.COMPLETE
    why = trial.user_attrs.get("regimes:why")
    return {"trial": trial.number, "params": trial.params, "values": trial.values if done else None, "why": why}


# -- the run folder ----------------------------------------------------------------------------------------------------


def begin(spec: Hpo, options: SearchOptions, say: Say) -> tuple[Cells, dict[str, EngineChoice]]:
    """Open the run folder of a search, or begin it: check data, model and recipes, choose the engines, ask the map.

    Raises:
        UserError: they do not fit together; the folder holds something else.
    """
    folder = options.folder
    _check_folder(spec, options)
    if options.map is not None and options.map.is_dir():
        _begin_as(Store(folder), Store(options.map), options.device)
    prepared = prepare(sweep_of(spec, sample_settings(spec)), folder, options.device, workers=options.workers)
    store = prepared.store
    store.remove_leftovers()
    facts = {"numerics": dataclasses.asdict(prepared.spec.numerics), **prepared.engine_facts, **environment()}
    store.write_json("run.json", facts, keep_existing=True)
    if not (folder / PLAN).exists():
        write_checked(folder / PLAN, _plan(spec, options, say), keep_existing=True)
    return open_cells(spec, options.folder, devices_of(options.device)[0], prepared)


def _plan(spec: Hpo, options: SearchOptions, say: Say) -> dict[str, Any]:
    """The content of the plan's file: the key of the search, and the decisions of the map."""
    content: dict[str, Any] = {"key": plan_key(spec), "map": None, "space": None, "first": []}
    if options.map is None:
        return content
    decisions = decide(spec, open_guidance(options.map, spec.data, spec.model))
    for each in decisions.notes:
        say(each)
    space = {name: each.model_dump(exclude_none=True) for name, each in decisions.space.items()}
    return {**content, "map": str(options.map.resolve()), "space": space, "first": list(decisions.first)}


def _take_from_map(study: optuna.Study, cells: Cells, options: SearchOptions, say: Say) -> None:
    """Take the cells of the map's run as trials, and enqueue the settings that the map selects."""
    path = _map_of(options)
    if path is None:
        return
    if path.is_dir():
        added, why = add_known_cells(study, cells, path)
        if added or why:
            say(f"{options.map or path}: {added} cells are taken as finished trials" + (f" ({why})" if why else ""))
    else:
        say(f"{path}: a grid without recipes; its cells cannot be taken as trials")
    for params in (read_checked(options.folder / PLAN) or {})["first"]:
        study.enqueue_trial(params, skip_if_exists=True)


def _map_of(options: SearchOptions) -> Path | None:
    """The map that the search was begun with."""
    found = (read_checked(options.folder / PLAN) or {}).get("map")
    if options.map is not None and str(options.map.resolve()) != found:
        raise UserError(f"--map {options.map}: this search was started with {found or 'no map'}; use another --out")
    return Path(found) if found else None


def _begin_as(store: Store, known: Store, device: str) -> None:
    """Begin a run with the engines of another one on the same kind of device, so that its stages can be taken over."""
    info = known.run_info
    if info is not None and info["numerics"]["device"] == devices_of(device)[0].split(":")[0]:
        store.write_json("run.json", {**info, **environment()}, keep_existing=True)


def open_cells(
    spec: Hpo, folder: Any, device: str, prepared: Prepared | None = None
) -> tuple[Cells, dict[str, EngineChoice]]:
    """Open the run folder of a search that has begun, e.g. in a worker process."""
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
    plan = read_checked(Path(folder) / PLAN) or {}
    known = plan["map"] if plan["map"] and Path(plan["map"]).is_dir() else None
    if plan["space"]:
        narrowed = {name: Dimension.model_validate(each) for name, each in plan["space"].items()}
        spec = spec.model_copy(update={"space": narrowed})
    return Cells(spec, context, store, Store(known) if known else None), engines_in(info)


def _check_folder(spec: Hpo, options: SearchOptions) -> None:
    """Refuse a folder that holds a run of a sweep, or a search that differs in what values depend on."""
    folder = options.folder
    try:
        plan, layout = read_checked(folder / PLAN), read_checked(folder / "layout.json")
    except DamagedFile as error:
        raise UserError(f"{error}; remove it, the trials are kept") from error
    if plan is None and layout is not None and layout.get("origin") != SEARCH_ORIGIN:
        raise UserError(
            f"{folder}: holds the run of a sweep; use another --out, and --map {folder} to take its cells as trials"
        )
    if plan is not None and plan["key"] != plan_key(spec):
        raise UserError(
            f"{folder}: holds a search with another space, load, data, model or recipe; use another --out or name, or "
            "undo the change"
        )


def plan_key(spec: Hpo) -> str:
    """Return a hash of the settings on which values depend; number of trials, batch and sampler may change."""
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


def study_of(spec: Hpo, context: RunContext, storage: optuna.storages.BaseStorage, worker: int = 0) -> optuna.Study:
    """Create or open the study of a search."""
    assert spec.pruned is not None
    space = space_of(spec)
    science: Mapping[str, Any] = {
        "objective": "pruned",
        "data": spec.data.model_dump(),
        "fingerprint": context.loaded.fingerprint,
        "model": spec.model.model_dump(),
        "recipe": spec.recipe.key_fields(),
        "pruned": spec.pruned.model_dump(mode="json"),
        "value": spec.study.value,
        "against": spec.study.against,
        "seed": spec.seed,
    }
    values = 2 if DENSITY in space else 1
    return open_study(storage, spec.name, spec.study, space, [1], science, spec.seed, worker, values)
