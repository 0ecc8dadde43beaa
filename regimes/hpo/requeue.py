"""Trials whose worker was killed: found, failed, and queued again with the same values."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from regimes.experiment.process_identity import is_dead, is_here, this_worker
from regimes.hpo.trial_attrs import PREFIX

INHERITED_ATTRS = tuple(f"{PREFIX}{name}" for name in ("seed", "promoted", "from"))  # of a requeued trial
UNNAMED_TRIAL_TIMEOUT = 60  # seconds after which a trial without a worker's name counts as dead


def requeue_dead_trials(study: optuna.Study, elsewhere: bool = False) -> list[int]:
    """Mark trials whose process is gone as failed and enqueue their values again; returns their numbers.

    Segments that they finished are read from the store. Processes of other machines cannot be checked: their trials
    count as running, or as gone if ``elsewhere`` is true.
    """
    dead = []
    again = {each.user_attrs.get(f"{PREFIX}instead_of") for each in study.get_trials(deepcopy=False)}
    for trial in study.get_trials(deepcopy=False):
        gone = is_open(trial) and is_gone(trial, elsewhere)
        cut_off = gone or trial.user_attrs.get(f"{PREFIX}unfinished")
        values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if cut_off and trial.number not in again and values:
            kept = {name: each for name, each in trial.user_attrs.items() if name in INHERITED_ATTRS}
            about = {f"{PREFIX}seed": trial.number, **kept, f"{PREFIX}instead_of": trial.number}
            study.enqueue_trial(values, user_attrs=about)  # before FAIL: a kill in between loses nothing
            dead.append(trial.number)
        if gone:
            with contextlib.suppress(RuntimeError, ValueError):  # already finished by another process
                study.tell(trial.number, state=TrialState.FAIL)
    return dead


def is_gone(trial: FrozenTrial, elsewhere: bool = False) -> bool:
    """Return whether the process that ran a trial is gone; see `requeue_dead_trials`."""
    name = trial.user_attrs.get(f"{PREFIX}worker")
    if name is not None:
        return is_dead(name) or (elsewhere and not is_here(name))
    assert trial.datetime_start is not None
    return abs((datetime.now() - trial.datetime_start).total_seconds()) > UNNAMED_TRIAL_TIMEOUT


def is_open(trial: FrozenTrial) -> bool:
    """Return whether a trial is running."""
    return trial.state == TrialState.RUNNING


def works_beside(study: optuna.Study) -> bool:
    """Return whether another living process of this machine holds a running trial."""
    names = [each.user_attrs.get(f"{PREFIX}worker") for each in study.get_trials(deepcopy=False) if is_open(each)]
    return any(name != this_worker() and is_here(name) and not is_dead(name) for name in names if name)


def count_finished(trials: Sequence[FrozenTrial]) -> int:
    """Return the number of trials that count towards the limit: finished ones, and running ones with a known worker.

    Trials that were interrupted and enqueued again do not count, nor running ones without the name of a worker.
    """
    finished = sum(each.state in (TrialState.COMPLETE, TrialState.PRUNED) for each in trials)
    failed = sum(each.state == TrialState.FAIL and f"{PREFIX}why" in each.user_attrs for each in trials)
    return finished + failed + sum(is_open(each) and f"{PREFIX}worker" in each.user_attrs for each in trials)


def is_duplicate(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether an earlier trial has the same origin, because two processes enqueued it at once."""
    for name in (f"{PREFIX}promoted", f"{PREFIX}instead_of"):
        if name in trial.user_attrs:
            same = [each for each in trials[: trial.number] if each.user_attrs.get(name) == trial.user_attrs[name]]
            return any(each.state != TrialState.FAIL or f"{PREFIX}why" in each.user_attrs for each in same)
    return False


def is_drawn_twice(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether another process has an earlier trial with the same value of a range, drawn from the same seed."""
    ranges = [name for name, each in trial.distributions.items() if isinstance(each, FloatDistribution)]
    values, worker = [trial.params[name] for name in ranges], f"{PREFIX}worker"
    return bool(ranges) and any(
        [each.params.get(name) for name in ranges] == values
        and each.user_attrs.get(worker) != trial.user_attrs.get(worker)
        for each in trials[: trial.number]
    )


def holders(study: optuna.Study) -> list[str]:
    """Return the machines whose workers hold running trials."""
    names = (each.user_attrs.get(f"{PREFIX}worker", "?/") for each in study.get_trials(deepcopy=False) if is_open(each))
    return sorted({name.rsplit("/", 2)[0] for name in names})
