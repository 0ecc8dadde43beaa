"""A whole search, as ``regimes hpo`` does it: map, plan, study, winner, savings; resumes where it stopped."""

from __future__ import annotations

import math
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
from regimes.hpo.optimize_loop import Limits, begin, final, study_of, trial_runner_of, winner_of, work
from regimes.hpo.optuna_study import JOURNAL, count_finished, holders, is_open, open_storage, requeue_dead_trials
from regimes.hpo.plan import Plan, Say, context_of, guide_of, load_plan, plan, save_plan
from regimes.hpo.promotion import BASE, phase_of, phases, promote, promoted
from regimes.hpo.savings import savings, stopped_at
from regimes.hpo.trial_attrs import PREFIX
from regimes.hpo.trial_runner import Watch
from regimes.hpo.worker_pool import WorkerConfig, run_workers

RESULT = "result.json"
WAIT = 1.0  # seconds between two looks at trials that others hold
Look = Callable[[optuna.Study, Plan], None]


@dataclass(frozen=True)
class SearchOptions:
    """How a search is to be done.

    Attributes:
        folder: of its files.
        map: of a run or grid; None: made, or none.
        storage: of the study; None: a journal in the folder.
        timeout: seconds from which nothing new is begun.
        workers: processes; 1: this one.
        device: "cpu", "cuda", ...
        take_over: whether trials that other machines hold count as given up.
    """

    folder: Path
    map: Path | None = None
    storage: str | None = None
    timeout: float = math.inf
    workers: int = 1
    device: str = "cpu"
    take_over: bool = False


def search(
    spec: Hpo, asked: SearchOptions, say: Say = lambda text: None, watch: Watch | None = None, look: Look | None = None
) -> dict[str, Any]:
    """Do a search, or what is left of it; returns its result as plain data, which stands in the folder too.

    Args:
        spec: what is searched.
        asked: how.
        say: called with what was decided, in words.
        watch: called after every stretch of every trial, where there is one process.
        look: called every now and then, where there are several.

    Raises:
        UserError: a map, storage or study that does not fit; no trial reached the full network.
    """
    started = time.monotonic()
    deadline = started + asked.timeout
    asked.folder.mkdir(parents=True, exist_ok=True)
    url = asked.storage or str(asked.folder / JOURNAL)
    storage = open_storage(url)
    context = context_of(spec, asked.device, asked.folder)
    whole = load_plan(spec, context, asked.folder)
    if whole is None:
        guide = guide_of(spec, asked.map, asked.folder, asked.workers, asked.device, say)
        whole = plan(spec, context, guide, asked.workers, say)
        save_plan(whole, asked.folder)
        whole = load_plan(spec, context, asked.folder) or whole
    _check_same(whole, asked)
    go = _SearchRunner(whole, context, asked, url, deadline, say, watch, look)
    studies = [study_of(phase_of(whole, phase), context, storage) for phase in phases(whole)]
    begin(studies[0], phase_of(whole, phases(whole)[0]))
    go.on(phases(whole)[0], studies[0], spec.trials)
    if len(studies) > 1:
        go.promote(*studies)
    return _finish(whole, studies, context, asked.folder, say, time.monotonic() >= deadline)


@dataclass(frozen=True)
class _SearchRunner:
    """What the phases of a search share."""

    plan: Plan
    context: RunContext
    asked: SearchOptions
    url: str
    deadline: float
    say: Say
    watch: Watch | None
    look: Look | None

    def on(self, phase: str, study: optuna.Study, trials: int) -> None:
        """Work on a phase until its trials are done, whoever does them, or time is up."""
        told, again = False, requeue_dead_trials(study, self.asked.take_over)
        while True:
            if again:
                self.say(f"{len(again)} trials were cut off and are done again: {', '.join(map(str, again))}")
            if count_finished(study.get_trials(deepcopy=False)) < trials:
                self._work(phase, study, trials)
            held = sum(is_open(each) for each in study.get_trials(deepcopy=False))
            again = requeue_dead_trials(study, self.asked.take_over)
            if time.monotonic() >= self.deadline or not (held or again):
                return
            if not again:
                if not told:
                    others = ", ".join(holders(study))
                    self.say(f"waiting for {held} held by others ({others}); if one is gone: stop this, --take-over")
                told = True
                time.sleep(WAIT)

    def promote(self, proxies: optuna.Study, base: optuna.Study) -> None:
        """Train the best proxies in full, and the next best where none of these comes to its end."""
        most = self.plan.spec.study.promoted
        count = 0
        while not base.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) or not count:
            if time.monotonic() >= self.deadline and not _all_done(proxies, self.plan.spec):
                return
            winner_of(proxies)  # says what to do where there is none
            count += most
            before = promoted(base)
            best = promote(proxies, base, count)
            new = len(set(best) - before)
            if new:
                self.say(f"proxies are done; the best {new} are trained in full")
            self.on(BASE, base, len(promoted(base)))
            if len(best) < count or time.monotonic() >= self.deadline:
                return

    def _work(self, phase: str, study: optuna.Study, trials: int) -> None:
        part, asked = phase_of(self.plan, phase), self.asked
        if asked.workers <= 1:
            climb = trial_runner_of(part, self.context, asked.folder, self.watch, self.deadline)
            work(study, climb, part.spec.batch, Limits(trials, self.deadline, phase != BASE))
            return
        look = self.look
        seen = (lambda: look(study, part)) if look else (lambda: None)
        ends = time.time() + self.deadline - time.monotonic()
        batch = max(1, part.spec.batch // asked.workers)
        post = WorkerConfig(asked.folder, self.url, asked.device, phase, batch, trials, ends)
        run_workers(post, self.plan.spec, study, asked.workers, seen)


def _check_same(whole: Plan, asked: SearchOptions) -> None:
    """A search that is gone on with keeps its map and its device: rungs and their costs rest on them."""
    name = whole.guide.name if whole.guide else None
    if asked.map is not None and str(asked.map.resolve()) != name:
        raise UserError(f"--map {asked.map}: this search was begun with {name or 'no map'}; take another --out")
    if asked.device != whole.device:
        raise UserError(f"--device {asked.device}: this search was begun on {whole.device}; take another --out")


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
        notes.append("time was up before any trial was trained in full: the best proxy's values are taken")
        say(notes[-1])
    result: dict[str, Any] = {"name": whole.spec.name, "key": _key(whole, study, winner), "notes": notes}
    before = _before(folder / RESULT)
    if before is not None and before["key"] == result["key"]:
        result["winner"] = before["winner"]  # judged on the test split once
    else:
        fresh = f"it is trained {whole.spec.final_seeds} times anew and tested"
        say(f"trial {winner.number} of {study.study_name} is the best; {fresh}")
        result["winner"] = final(whole, context, winner)
    result["stopped"] = {study.study_name: {str(k): n for k, n in stopped_at(study).items()} for study in studies}
    result["value"] = whole.spec.study.value
    result["savings"] = savings(studies, whole)
    result["ladder"] = whole.ladder.facts()
    result["steps"] = [each.step for each in whole.ladder.stretches]
    result["failed"] = [
        {"trial": each.number, "why": each.user_attrs[f"{PREFIX}why"], "params": each.params}
        for study in studies
        for each in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if f"{PREFIX}why" in each.user_attrs  # others were cut off and done again, or not needed
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
