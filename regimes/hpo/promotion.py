"""The "promote" pattern: a study of proxies, then its best trials in a study of the full network."""

from __future__ import annotations

import dataclasses

import optuna
from optuna.trial import FrozenTrial, TrialState

from regimes.config.keys import digest
from regimes.errors import UserError
from regimes.hpo.fidelities import Ladder, ladder_of
from regimes.hpo.plan import Plan
from regimes.hpo.trial_attrs import PREFIX

SINGLE_PHASE, PROXY_PHASE, FULL_PHASE = "whole", "proxies", "base"


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
    done = proxies.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        raise UserError(f"study '{proxies.study_name}' has no finished trial to promote")
    worst_last = proxies.direction == optuna.study.StudyDirection.MINIMIZE
    ranked = sorted(done, key=lambda each: each.value or 0.0, reverse=not worst_last)
    known = promoted(base)
    before = {digest(each.params): each for each in done if each.number in known}  # already promoted
    distinct: dict[str, FrozenTrial] = {}
    for trial in ranked:
        distinct.setdefault(digest(trial.params), before.get(digest(trial.params), trial))
    best = list(distinct.values())[:count]
    for trial in best:
        if trial.number not in known:
            base.enqueue_trial(trial.params, user_attrs={f"{PREFIX}promoted": trial.number})
    return [trial.number for trial in best]


def promoted(base: optuna.Study) -> set[int]:
    """Return the numbers of the proxy trials that were promoted into a study."""
    name = f"{PREFIX}promoted"
    return {each.user_attrs[name] for each in base.get_trials(deepcopy=False) if name in each.user_attrs}
