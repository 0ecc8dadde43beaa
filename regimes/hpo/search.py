"""A whole search, as run by ``regimes hpo``: map, plan, study, winner, savings; resumes where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from regimes.config.hpo import Hpo
from regimes.config.keys import digest
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.context import RunContext
from regimes.experiment.devices import devices_of
from regimes.hpo.optimize_loop import (
    Limits,
    enqueue_priors,
    evaluate_winner,
    run_trials,
    study_of,
    trial_runner_of,
    winner_of,
)
from regimes.hpo.optuna_study import JOURNAL, open_storage
from regimes.hpo.plan import Plan, Say, context_of, guidance_of, load_plan, plan, save_plan
from regimes.hpo.promotion import FULL_PHASE, phase_of, phases, promote, promoted
from regimes.hpo.requeue import count_finished, holders, is_open, requeue_dead_trials
from regimes.hpo.savings import savings, stopped_at
from regimes.hpo.search_options import RESULT, SearchOptions
from regimes.hpo.trial_attrs import PREFIX
from regimes.hpo.trial_runner import Watch
from regimes.hpo.validation import units_of
from regimes.hpo.worker_pool import WorkerConfig, run_workers

POLL_SECONDS = 1.0  # between two checks of trials held by others
Look = Callable[[optuna.Study, Plan], None]


def search(
    spec: Hpo,
    options: SearchOptions,
    say: Say = lambda text: None,
    watch: Watch | None = None,
    look: Look | None = None,
) -> dict[str, Any]:
    """Run or resume a search; returns the result as plain data, which is also written to ``result.json``.

    Args:
        spec: the search's settings.
        options: folder, map, storage, limits and device.
        say: called with decisions and progress, in words.
        watch: called after every segment of every trial, if there is one process.
        look: called twice a second, if there are several processes.

    Raises:
        UserError: the map, storage or study does not fit; no trial reached the full network.
    """
    started = time.monotonic()
    deadline = started + options.timeout
    devices = devices_of(options.device)
    options.folder.mkdir(parents=True, exist_ok=True)
    url = options.storage or str(options.folder / JOURNAL)
    storage = open_storage(url)
    context = context_of(spec, devices[0], options.folder)
    whole = load_plan(spec, context, options.folder)
    if whole is None:
        guidance = guidance_of(spec, options.map, options.folder, options.workers, options.device, say)
        whole = plan(spec, context, guidance, options.workers, say, len(devices))
        save_plan(whole, options.folder)
        whole = load_plan(spec, context, options.folder) or whole
    _check_same(whole, options)
    runner = _SearchRunner(whole, context, options, url, deadline, say, watch, look)
    studies = [study_of(phase_of(whole, phase), context, storage) for phase in phases(whole)]
    enqueue_priors(studies[0], phase_of(whole, phases(whole)[0]))
    runner.run_phase(phases(whole)[0], studies[0], spec.trials)
    if len(studies) > 1:
        runner.promote(*studies)
    return _finish(whole, studies, context, options.folder, say, time.monotonic() >= deadline)


@dataclass(frozen=True)
class _SearchRunner:
    """State shared by the phases of a search."""

    plan: Plan
    context: RunContext
    options: SearchOptions
    url: str
    deadline: float
    say: Say
    watch: Watch | None
    look: Look | None

    def run_phase(self, phase: str, study: optuna.Study, trials: int) -> None:
        """Run a phase until its trials are done, by this or other processes, or time is up."""
        waiting, again = False, requeue_dead_trials(study, self.options.take_over)
        while True:
            if again:
                self.say(f"{len(again)} interrupted trials are requeued: {', '.join(map(str, again))}")
            if count_finished(study.get_trials(deepcopy=False)) < trials:
                self._work(phase, study, trials)
            held = sum(is_open(each) for each in study.get_trials(deepcopy=False))
            again = requeue_dead_trials(study, self.options.take_over)
            if time.monotonic() >= self.deadline or not (held or again):
                return
            if not again:
                if not waiting:
                    others = ", ".join(holders(study))
                    self.say(
                        f"waiting for {held} trials held by {others}; if a machine is gone, stop and use --take-over"
                    )
                waiting = True
                time.sleep(POLL_SECONDS)

    def promote(self, proxies: optuna.Study, base: optuna.Study) -> None:
        """Train the best proxies in full; if none of them completes, the next best."""
        most = self.plan.spec.study.promoted
        count = 0
        while not base.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) or not count:
            if time.monotonic() >= self.deadline and not _all_done(proxies, self.plan.spec):
                return
            winner_of(proxies)  # raises if there is none
            count += most
            before = promoted(base)
            best = promote(proxies, base, count)
            new = len(set(best) - before)
            if new:
                self.say(f"proxies are done; the best {new} are trained in full")
            self.run_phase(FULL_PHASE, base, len(promoted(base)))
            if len(best) < count or time.monotonic() >= self.deadline:
                return

    def _work(self, phase: str, study: optuna.Study, trials: int) -> None:
        part, options = phase_of(self.plan, phase), self.options
        if options.workers <= 1:
            runner = trial_runner_of(part, self.context, options.folder, self.watch, self.deadline)
            run_trials(study, runner, part.spec.batch, Limits(trials, self.deadline, phase != FULL_PHASE))
            return
        look = self.look
        on_poll = (lambda: look(study, part)) if look else (lambda: None)
        ends = time.time() + self.deadline - time.monotonic()
        batch = max(1, part.spec.batch // options.workers)
        config = WorkerConfig(options.folder, self.url, devices_of(options.device), phase, batch, trials, ends)
        run_workers(config, self.plan.spec, study, options.workers, on_poll)


def _check_same(whole: Plan, options: SearchOptions) -> None:
    """Refuse to resume a search with another map or device, on which its fidelities and costs depend."""
    name = whole.map_guidance.name if whole.map_guidance else None
    if options.map is not None and str(options.map.resolve()) != name:
        raise UserError(f"--map {options.map}: this search was started with {name or 'no map'}; use another --out")
    started_on = "cuda:0" if whole.device == "cuda" else whole.device  # the name in plans of earlier versions
    if started_on not in devices_of(options.device):
        raise UserError(f"--device {options.device}: this search was started on {started_on}; use another --out")


def _all_done(proxies: optuna.Study, spec: Hpo) -> bool:
    trials = proxies.get_trials(deepcopy=False)
    return count_finished(trials) >= spec.trials and not any(each.state == TrialState.RUNNING for each in trials)


def _finish(
    whole: Plan, studies: list[optuna.Study], context: RunContext, folder: Path, say: Say, late: bool
) -> dict[str, Any]:
    done = [study for study in studies if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    study, notes = done[-1] if late and done else studies[-1], list(whole.notes)
    winner = winner_of(study)
    if study is not studies[-1]:
        notes.append("time was up before any full training finished: the winner is the best proxy trial")
        say(notes[-1])
    result: dict[str, Any] = {"name": whole.spec.name, "key": _key(whole, study, winner), "notes": notes}
    before = _before(folder / RESULT)
    if before is not None and before["key"] == result["key"]:
        result["winner"] = before["winner"]  # evaluate on the test split only once
    else:
        fresh = f"it is trained with {whole.spec.final_seeds} fresh seeds and tested"
        say(f"trial {winner.number} of {study.study_name} is the best; {fresh}")
        result["winner"] = evaluate_winner(whole, context, winner)
    result["stopped"] = {study.study_name: {str(k): n for k, n in stopped_at(study).items()} for study in studies}
    result["value"] = whole.spec.study.value
    units = units_of(context, whole.spec.recipe)
    if not (units["error"]["fraction"] and units["loss"]["unit"] == "nat"):  # as results of earlier versions
        result["units"] = units
    result["savings"] = savings(studies, whole)
    result["ladder"] = whole.ladder.facts()
    result["steps"] = [each.step for each in whole.ladder.stretches]
    result["failed"] = [
        {"trial": each.number, "why": each.user_attrs[f"{PREFIX}why"], "params": each.params}
        for study in studies
        for each in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if f"{PREFIX}why" in each.user_attrs  # others were requeued or surplus
    ]
    write_checked(folder / RESULT, result)
    return result


def _key(whole: Plan, study: optuna.Study, winner: FrozenTrial) -> str:
    chosen = [study.study_name, winner.params, winner.number, winner.value]
    return digest([*chosen, whole.spec.final_seeds, whole.spec.seed])


def _before(path: Path) -> dict[str, Any] | None:
    try:
        return read_checked(path)
    except DamagedFile:
        return None
