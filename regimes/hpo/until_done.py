"""Loop of a command over a study that other processes may share: until the trials are done, or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable

import optuna

from regimes.hpo.requeue import count_finished, holders, is_open, requeue_dead_trials

POLL_SECONDS = 1.0  # between two checks of trials held by others


def until_done(
    study: optuna.Study,
    trials: int,
    work: Callable[[], None],
    deadline: float,
    take_over: bool,
    say: Callable[[str], None],
) -> None:
    """Work on a study until it has so many finished trials, made by this or other processes.

    Args:
        study: the study.
        trials: number of trials that are to finish.
        work: runs the trials that are missing.
        deadline: time (``time.monotonic``) after which nothing is started.
        take_over: whether running trials of other machines count as dead.
        say: called with messages.
    """
    waiting, again = False, requeue_dead_trials(study, take_over)
    while True:
        if again:
            say(f"{len(again)} interrupted trials are requeued: {', '.join(map(str, again))}")
        if count_finished(study.get_trials(deepcopy=False)) < trials:
            work()
        held = sum(is_open(each) for each in study.get_trials(deepcopy=False))
        again = requeue_dead_trials(study, take_over)
        if time.monotonic() >= deadline or not (held or again):
            return
        if not again:
            if not waiting:
                others = ", ".join(holders(study))
                say(f"waiting for {held} trials held by {others}; if a machine is gone, stop and use --take-over")
            waiting = True
            time.sleep(POLL_SECONDS)
