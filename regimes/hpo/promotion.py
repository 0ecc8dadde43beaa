"""The "promote" pattern: a study of proxies, and one in which the best of them are trained in full as it goes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from regimes.config.keys import digest
from regimes.errors import UserError
from regimes.experiment.context import RunContext
from regimes.hpo.fidelities import Ladder, ladder_of
from regimes.hpo.optimize_loop import Limits, run_batch, run_trials, trial_runner_of, trials_left
from regimes.hpo.plan import Plan
from regimes.hpo.requeue import count_finished, is_open
from regimes.hpo.trial_attrs import PREFIX
from regimes.hpo.trial_runner import Watch

SINGLE_PHASE, PROXY_PHASE, FULL_PHASE = "whole", "proxies", "base"
HELD_BACK = 2  # promotions that wait until all proxies are done


def phases(plan: Plan) -> list[str]:
    """Return the phases of a search in order: one study, or a study of proxies and one of the full network."""
    one = plan.spec.study.pattern == "ladder" or len(plan.ladder.rungs) == 1
    return [SINGLE_PHASE] if one else [PROXY_PHASE, FULL_PHASE]


def phase_of(plan: Plan, phase: str) -> Plan:
    """Return the part of a plan that belongs to one phase."""
    if phase == SINGLE_PHASE:
        return plan
    if phase == PROXY_PHASE:
        name = f"{plan.spec.name}-proxy"
        count = sum(each.rung < len(plan.ladder.rungs) - 1 for each in plan.ladder.stretches)
        ladder = dataclasses.replace(plan.ladder, rungs=plan.ladder.rungs[:-1], stretches=plan.ladder.stretches[:count])
        spec = plan.spec.model_copy(update={"name": name})
        return dataclasses.replace(plan, spec=spec, ladder=ladder, map_guidance=None)
    spec = plan.spec.model_copy(update={"batch": 1})
    full: Ladder = ladder_of(plan.ladder.rungs[-1:], ())
    return dataclasses.replace(plan, spec=spec, ladder=full, priors=())


class StudyRunner:
    """Trains the trials of a search: one study, or proxies in batches with promotions after each batch.

    Args:
        plan: plan of the search.
        context: the full network's data, model and device.
        studies: the study of each of `phases`.
        folder: folder of the search.
        batch: number of trials asked for together.
        deadline: time by ``time.monotonic`` after which nothing new is started.
        watch: called after every segment of every trial.
    """

    def __init__(
        self,
        plan: Plan,
        context: RunContext,
        studies: Sequence[optuna.Study],
        folder: Path,
        batch: int,
        deadline: float = math.inf,
        watch: Watch | None = None,
    ) -> None:
        self.plan, self.studies, self.batch, self.deadline = plan, studies, batch, deadline
        parts = [phase_of(plan, phase) for phase in phases(plan)]
        self.runners = [trial_runner_of(part, context, folder, watch, deadline) for part in parts]
        self.limits = Limits(plan.spec.trials, deadline)

    def run(self) -> None:
        """Train until nothing is left to start, or time is up."""
        study, runner = self.studies[0], self.runners[0]
        if len(self.studies) == 1:
            run_trials(study, runner, self.batch, self.limits)
            return
        base, full = self.studies[1], self.runners[1]
        while time.monotonic() < self.deadline:
            self._promote()
            if not run_batch(base, full, 1, self._base_limits) and not run_batch(
                study, runner, self.batch, self.limits
            ):
                return

    @property
    def is_idle(self) -> bool:
        """Whether nothing can be started now."""
        if len(self.studies) > 1 and (self._due() or trials_left(self.studies[1], self.plan.space, self._base_limits)):
            return False
        return trials_left(self.studies[0], self.plan.space, self.limits) <= 0

    @property
    def _base_limits(self) -> Limits:
        return Limits(len(promoted(self.studies[1])), self.deadline, draws=False)

    def _promote(self) -> None:
        for trial in self._due():
            self.studies[1].enqueue_trial(trial.params, user_attrs={f"{PREFIX}promoted": trial.number})

    def _due(self) -> list[FrozenTrial]:
        proxies, base = self.studies
        return due(proxies, base, self.plan.spec.study.promoted, trials_left(proxies, self.plan.space, self.limits))


def due(proxies: optuna.Study, base: optuna.Study, most: int, left: float) -> list[FrozenTrial]:
    """Return the trials that are to be promoted now, best first.

    While proxies are trained, the number of promotions keeps pace with them, up to ``most - HELD_BACK``: the best proxy
    not yet promoted is next. When all proxies are done, the rest follow, and the `HELD_BACK` best proxies in any case;
    if all of the full trainings fail, the next ``most``.

    Args:
        proxies: the study of proxies.
        base: the study of the full network.
        most: number of promotions of the search.
        left: number of trials that ``proxies`` can still start.
    """
    trials = proxies.get_trials(deepcopy=False)
    running = [each for each in trials if is_open(each)]
    ranked = _distinct(proxies, base)
    known = promoted(base)
    fresh = [each for each in ranked if each.number not in known]
    if running or left > 0:
        finished = count_finished([each for each in trials if not is_open(each)])
        share = finished / (finished + len(running) + max(0, left))
        return fresh[: max(0, math.ceil(max(0, most - HELD_BACK) * share) - len(known))]
    full = base.get_trials(deepcopy=False)
    if full and not any(each.state == TrialState.COMPLETE or not each.state.is_finished() for each in full):
        most = most * (1 + len(known) // most)
    best = [each for each in ranked[: min(HELD_BACK, most)] if each.number not in known]
    return fresh[: max(len(best), most - len(known))]


def _distinct(proxies: optuna.Study, base: optuna.Study) -> list[FrozenTrial]:
    """Finished proxy trials, best first; of those with equal parameters the one promoted before, or else the best."""
    done = proxies.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best_first = sorted(
        done, key=lambda each: each.value or 0.0, reverse=proxies.direction == optuna.study.StudyDirection.MAXIMIZE
    )
    known = promoted(base)
    before = {digest(each.params): each for each in done if each.number in known}
    distinct: dict[str, FrozenTrial] = {}
    for trial in best_first:
        distinct.setdefault(digest(trial.params), before.get(digest(trial.params), trial))
    return list(distinct.values())


def promote(proxies: optuna.Study, base: optuna.Study, count: int) -> list[int]:
    """Enqueue the best trials of a study of proxies in a study of the full network, each once; returns their numbers.

    Of trials with equal parameters the best is taken. Both studies may be in one storage. The user attribute
    ``regimes:promoted`` of a trial of the base study is the number of its proxy trial.

    Args:
        proxies: the study of proxies.
        base: the study of the full network.
        count: number of trials to promote, those promoted before included.

    Raises:
        UserError: no trial of the proxies has finished.
    """
    ranked = _distinct(proxies, base)
    if not ranked:
        raise UserError(f"study '{proxies.study_name}' has no finished trial to promote")
    known, best = promoted(base), ranked[:count]
    for trial in best:
        if trial.number not in known:
            base.enqueue_trial(trial.params, user_attrs={f"{PREFIX}promoted": trial.number})
    return [trial.number for trial in best]


def promoted(base: optuna.Study) -> set[int]:
    """Return the numbers of the proxy trials that were promoted into a study."""
    name = f"{PREFIX}promoted"
    return {each.user_attrs[name] for each in base.get_trials(deepcopy=False) if name in each.user_attrs}
