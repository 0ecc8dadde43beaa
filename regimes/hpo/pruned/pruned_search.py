"""A whole search for pruned networks: ``regimes hpo`` with ``objective = "pruned"``; resumes where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from regimes.config.hpo import Hpo
from regimes.config.keys import digest
from regimes.data.dataset import guessing_error
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.claims import Claims
from regimes.experiment.context import RunContext
from regimes.experiment.devices import devices_of
from regimes.experiment.executors import Pool, by_processes, in_process
from regimes.experiment.schedule import fleets, scan_store
from regimes.experiment.stages.stage import Stage
from regimes.hpo.optimize_loop import Limits, run_trials, trials_left
from regimes.hpo.optuna_study import JOURNAL, open_storage, open_study
from regimes.hpo.plan import Say
from regimes.hpo.pruned import DENSITY
from regimes.hpo.pruned.cell_runner import CellRunner, lanes_of, space_of
from regimes.hpo.pruned.cells import Cells
from regimes.hpo.pruned.known_cells import add_known_cells
from regimes.hpo.pruned.map_sampler import MapSampler
from regimes.hpo.pruned.network_cost import UNITS
from regimes.hpo.pruned.outcome import best_of, spending, tested
from regimes.hpo.pruned.search_folder import begin, plan_of
from regimes.hpo.requeue import count_finished
from regimes.hpo.samplers import nothing_to_learn
from regimes.hpo.search_options import RESULT, SearchOptions
from regimes.hpo.until_done import until_done
from regimes.hpo.validation import units_of
from regimes.hpo.worker_pool import WorkerConfig, run_workers

PrunedLook = Callable[[optuna.Study, Mapping[str, Any]], None]


def search_pruned(spec: Hpo, options: SearchOptions, say: Say, look: PrunedLook | None = None) -> dict[str, Any]:
    """Run or resume a search for pruned networks; returns the result as plain data, also written to ``result.json``.

    Args:
        spec: the search's settings.
        options: folder, map, storage, limits and device.
        say: called with decisions and progress, in words.
        look: called with the study, and title and unit of its values, after every trial, or twice a second if there are
            several processes.

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
    if spec.batch >= spec.trials and spec.study.sampler != "random":
        say(nothing_to_learn(spec))
    processes, limits = options.workers > 1, Limits(spec.trials, deadline)

    what = units_of(cells.context, spec.recipe)[spec.study.value]

    def shown(study: optuna.Study) -> None:
        if look is not None:
            look(study, what)

    def work() -> None:
        if not processes:
            run_trials(study, CellRunner(spec, cells, engines, shown, deadline), spec.batch, limits)
            return
        ends = time.time() + deadline - time.monotonic()
        config = WorkerConfig(options.folder, url, devices, max(1, spec.batch // options.workers), ends)
        run_workers(config, spec, [study], options.workers, lambda: shown(study))

    def is_idle() -> bool:
        return trials_left(study, space_of(spec), limits) <= 0

    until_done([study], work, is_idle, deadline, options.take_over, say)
    CellRunner(spec, cells, engines).write_layout(study)  # workers may have written theirs in another order
    best = best_of(study)

    def do(stages: Sequence[Stage]) -> None:
        distinct = list({each.key: each for each in stages}.values())
        for stage in distinct:
            cells.store.failure_file(stage.key).unlink(missing_ok=True)  # the last command's: try again
        fresh = fleets(scan_store(distinct, cells.store).todo, lanes_of(engines), options.workers)
        with Claims(options.folder, options.workers) as claims:
            if processes:
                by_processes(fresh, cells.context.spec, claims, lambda outcome: None, Pool(options.workers), devices)
            else:
                in_process(fresh, cells.context, claims, lambda outcome: None)

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
    result |= {
        "against": spec.study.against,
        "against_unit": UNITS[spec.study.against],
        "units": units_of(cells.context, spec.recipe),
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


def _take_from_map(study: optuna.Study, cells: Cells, options: SearchOptions, say: Say) -> None:
    """Take the cells of the map's run as trials, and enqueue the settings that the map selects."""
    plan = plan_of(options.folder)
    if plan["map"] is None:
        return
    path = Path(plan["map"])
    if cells.known is not None:
        added, why = add_known_cells(study, cells)
        if added or why:
            say(f"{path}: {added} cells are taken as finished trials" + (f" ({why})" if why else ""))
        trials = study.get_trials(deepcopy=False)
        if count_finished(trials) >= cells.spec.trials and added:
            more = count_finished(trials) + cells.spec.trials
            say(
                f"trials = {cells.spec.trials}: all are cells of the map, nothing is searched; use e.g. --trials {more}"
            )
        if trials:
            CellRunner(cells.spec, cells, {}).write_layout(study)
    else:
        what = "a grid without recipes: its" if path.exists() else "not found; its"
        say(f"{path}: {what} cells cannot be taken as trials")
    for params in plan["first"]:
        study.enqueue_trial(params, skip_if_exists=True)


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
    study = open_study(storage, spec.name, spec.study, space, [1], science, spec.seed, worker, values)
    if isinstance(study.sampler, MapSampler) and study.sampler.landscape:
        missing = [name for name in ("error", "lmc", "cka") if name not in spec.pruned.measure.metrics]
        if missing or not context.fraction(spec.recipe):
            needs = f"the metrics error, lmc and cka (add {', '.join(missing)})" if missing else "classes as targets"
            raise UserError(f"study.sampler_options.landscape: needs {needs}")
        study.sampler.chance_error = guessing_error(context.loaded.test.targets) or study.sampler.chance_error
    return study
