"""The pattern "promote": a study of proxies alone, then its best in a study of the full network, to the end."""

from __future__ import annotations

import dataclasses

import optuna
from optuna.trial import FrozenTrial, TrialState

from regimes.config.keys import digest
from regimes.errors import UserError
from regimes.hpo.fidelities import Ladder, ladder_of
from regimes.hpo.plan import Plan
from regimes.hpo.trial_attrs import PREFIX

WHOLE, PROXIES, BASE = "whole", "proxies", "base"  # phases: one study, or two


def phases(plan: Plan) -> list[str]:
    """The studies of a search, in order: one, or two where the best of the first are promoted."""
    return [WHOLE] if plan.spec.study.pattern == "ladder" or len(plan.ladder.rungs) == 1 else [PROXIES, BASE]


def phase_of(plan: Plan, phase: str) -> Plan:
    """The plan of one phase: of its study alone."""
    if phase == WHOLE:
        return plan
    if phase == PROXIES:
        name = f"{plan.spec.name}-proxy"
        count = sum(each.rung < len(plan.ladder.rungs) - 1 for each in plan.ladder.stretches)
        ladder = dataclasses.replace(plan.ladder, rungs=plan.ladder.rungs[:-1], stretches=plan.ladder.stretches[:count])
        return dataclasses.replace(plan, spec=plan.spec.model_copy(update={"name": name}), ladder=ladder, guide=None)
    spec = plan.spec.model_copy(update={"batch": 1})
    full: Ladder = ladder_of(plan.ladder.rungs[-1:], ())
    return dataclasses.replace(plan, spec=spec, ladder=full, priors=())


def promote(proxies: optuna.Study, base: optuna.Study, count: int) -> list[int]:
    """Enqueue the best trials of a study of proxies in a study of the full network, once; returns their numbers.

    Of trials of equal values the best is taken. Both studies may be in one storage. A trial of the base study notes
    where it comes from in ``regimes:promoted``.

    Raises:
        UserError: no trial of the proxies has finished.
    """
    done = proxies.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        raise UserError(f"study '{proxies.study_name}' has no finished trial to promote")
    worst_last = proxies.direction == optuna.study.StudyDirection.MINIMIZE
    ranked = sorted(done, key=lambda each: each.value or 0.0, reverse=not worst_last)
    known = promoted(base)
    stands = {digest(each.params): each for each in done if each.number in known}  # promoted before for these values
    distinct: dict[str, FrozenTrial] = {}
    for trial in ranked:
        distinct.setdefault(digest(trial.params), stands.get(digest(trial.params), trial))
    best = list(distinct.values())[:count]
    for trial in best:
        if trial.number not in known:
            base.enqueue_trial(trial.params, user_attrs={f"{PREFIX}promoted": trial.number})
    return [trial.number for trial in best]


def promoted(base: optuna.Study) -> set[int]:
    """The trials of a study of proxies that were promoted into this one."""
    name = f"{PREFIX}promoted"
    return {each.user_attrs[name] for each in base.get_trials(deepcopy=False) if name in each.user_attrs}
