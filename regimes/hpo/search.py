"""A whole search, as run by ``regimes hpo``: map, plan, study, winner, savings; resumes where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
    enqueue_priors,
    evaluate_winner,
    study_of,
    winner_of,
)
from regimes.hpo.optuna_study import JOURNAL, open_storage
from regimes.hpo.plan import Plan, Say, context_of, guidance_of, load_plan, plan, save_plan
from regimes.hpo.progress import SearchState, trial_table
from regimes.hpo.promotion import StudyRunner, phase_of, phases, promoted
from regimes.hpo.samplers import nothing_to_learn
from regimes.hpo.savings import savings, stopped_at
from regimes.hpo.search_options import RESULT, SearchOptions
from regimes.hpo.trial_attrs import PREFIX
from regimes.hpo.trial_runner import Watch
from regimes.hpo.until_done import until_done
from regimes.hpo.validation import units_of
from regimes.hpo.worker_pool import WorkerConfig, run_workers

Look = Callable[[SearchState], None]


def search(
    spec: Hpo,
    options: SearchOptions,
    say: Say = lambda text: None,
    watch: Watch | None = None,
    look: Look = lambda state: None,
) -> dict[str, Any]:
    """Run or resume a search; returns the result as plain data, which is also written to ``result.json``.

    Args:
        spec: the search's settings.
        options: folder, map, storage, limits and device.
        say: called with decisions and progress, in words.
        watch: called after every segment of every trial, if there is one process.
        look: called with the state of the trials at the start, after every segment, or, if there are several processes,
            twice a second.

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
    studies = [study_of(phase_of(whole, phase), context, storage) for phase in phases(whole)]
    enqueue_priors(studies[0], phase_of(whole, phases(whole)[0]))
    if spec.batch >= spec.trials and spec.study.sampler != "random":
        say(nothing_to_learn(spec))
    _Search(whole, context, options, url, deadline, say, watch, look).run(studies)
    return _finish(whole, studies, context, options.folder, say, time.monotonic() >= deadline)


@dataclass(frozen=True)
class _Search:
    """A search that is planned."""

    plan: Plan
    context: RunContext
    options: SearchOptions
    url: str
    deadline: float
    say: Say
    watch: Watch | None
    look: Look

    def run(self, studies: Sequence[optuna.Study]) -> None:
        """Train all trials, until those of other processes are done too, or time is up."""
        folder, batch = self.options.folder, self.plan.spec.batch
        units = units_of(self.context, self.plan.spec.recipe)
        state = SearchState(studies, self.plan, units, max(1, self.options.workers))

        def watch(*segment: Any) -> None:
            if self.watch is not None:
                self.watch(*segment)
            self.look(state)

        runner = StudyRunner(self.plan, self.context, studies, folder, batch, self.deadline, watch)

        def work() -> None:
            self._work(runner, state)
            self.look(state)

        self.look(state)
        until_done(studies, work, lambda: runner.is_idle, self.deadline, self.options.take_over, self.say)

    def _work(self, runner: StudyRunner, state: SearchState) -> None:
        options = self.options
        if options.workers <= 1:
            runner.run()
            return
        ends = time.time() + self.deadline - time.monotonic()
        batch = max(1, self.plan.spec.batch // options.workers)
        config = WorkerConfig(options.folder, self.url, devices_of(options.device), batch, ends)
        run_workers(config, self.plan.spec, runner.studies, options.workers, lambda: self.look(state))


def _check_same(whole: Plan, options: SearchOptions) -> None:
    """Refuse to resume a search with another map or device, on which its fidelities and costs depend."""
    name = whole.map_guidance.name if whole.map_guidance else None
    if options.map is not None and str(options.map.resolve()) != name:
        raise UserError(f"--map {options.map}: this search was started with {name or 'no map'}; use another --out")
    started_on = "cuda:0" if whole.device == "cuda" else whole.device  # the name in plans of earlier versions
    if started_on not in devices_of(options.device):
        raise UserError(f"--device {options.device}: this search was started on {started_on}; use another --out")


def _finish(
    whole: Plan, studies: list[optuna.Study], context: RunContext, folder: Path, say: Say, late: bool
) -> dict[str, Any]:
    study, notes = _decisive(studies, late), list(whole.notes)
    winner = winner_of(study)
    if study is not studies[-1]:
        notes.append("time was up before any full training finished: the winner is the best proxy trial")
        say(notes[-1])
    elif len(studies) > 1 and not late and len(promoted(study)) < whole.spec.study.promoted:
        say(
            f"{len(promoted(study))} trials were trained in full, not promoted = {whole.spec.study.promoted}: the "
            "stopper let no more proxies train to their end; use a larger batch or study.stopper = 'none'"
        )
    ties = sum(each.value == winner.value for each in study.get_trials(deepcopy=False) if each.value is not None)
    if ties > 1:
        images = len(context.loaded.val.targets)
        say(
            f"{ties} trials share the best value: {images} validation images cannot tell them apart; the first is taken"
        )
    result: dict[str, Any] = {"name": whole.spec.name, "key": _key(whole, study, winner), "notes": notes}
    before = _before(folder / RESULT)
    if before is not None and before["key"] == result["key"]:
        result["winner"] = before["winner"]  # evaluate on the test split only once
    else:
        say(f"the best trial is trained with {whole.spec.final_seeds} fresh seeds and tested")
        result["winner"] = evaluate_winner(whole, context, winner)
    result["stopped"] = {study.study_name: {str(k): n for k, n in stopped_at(study).items()} for study in studies}
    result["value"] = whole.spec.study.value
    units = units_of(context, whole.spec.recipe)
    if not (units["error"]["fraction"] and units["loss"]["unit"] == "nat"):  # as results of earlier versions
        result["units"] = units
    result["savings"] = savings(studies, whole)
    result["ladder"] = whole.ladder.facts()
    result["table"] = trial_table(studies, whole)
    result["steps"] = [each.step for each in whole.ladder.stretches]
    result["failed"] = _failed(studies)
    write_checked(folder / RESULT, result)
    return result


def _decisive(studies: Sequence[optuna.Study], late: bool) -> optuna.Study:
    """The study whose best trial wins: the last one; that of the proxies if time was up or nothing was promoted."""
    last = studies[-1]
    finished = last.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return studies[0] if not finished and (late or not last.trials) else last


def _failed(studies: Sequence[optuna.Study]) -> list[dict[str, Any]]:
    return [
        {"trial": each.number, "why": each.user_attrs[f"{PREFIX}why"], "params": each.params}
        for study in studies
        for each in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if f"{PREFIX}why" in each.user_attrs  # others were requeued or surplus
    ]


def _key(whole: Plan, study: optuna.Study, winner: FrozenTrial) -> str:
    chosen = [study.study_name, winner.params, winner.number, winner.value]
    return digest([*chosen, whole.spec.final_seeds, whole.spec.seed])


def _before(path: Path) -> dict[str, Any] | None:
    try:
        return read_checked(path)
    except DamagedFile:
        return None
