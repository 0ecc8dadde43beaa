"""Loop of a command over studies that other processes may share: until the trials are done, or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import optuna

from regimes.hpo.requeue import holders, is_open, requeue_dead_trials

MAX_LISTED = 10  # numbers of trials in a message
POLL_SECONDS = 1.0  # between two checks of trials held by others


def until_done(
    studies: Sequence[optuna.Study],
    work: Callable[[], None],
    is_idle: Callable[[], bool],
    deadline: float,
    take_over: bool,
    say: Callable[[str], None],
) -> None:
    """Work on studies until nothing is left to start and no other process holds a trial; requeue dead ones' trials.

    Args:
        studies: the studies.
        work: runs the trials that are missing.
        is_idle: returns whether nothing is left to start.
        deadline: time (``time.monotonic``) after which nothing is started.
        take_over: whether running trials of other machines count as dead.
        say: called with messages.
    """

    def requeue() -> list[int]:
        again = [number for study in studies for number in requeue_dead_trials(study, take_over)]
        if again:
            listed = ", ".join(map(str, again[:MAX_LISTED])) + (", ..." if len(again) > MAX_LISTED else "")
            say(f"{len(again)} interrupted trials are requeued: {listed}")
        return again

    waiting = False
    requeue()
    while True:
        if not is_idle():
            work()
        again = requeue()
        held = [each for study in studies for each in study.get_trials(deepcopy=False) if is_open(each)]
        if time.monotonic() >= deadline or not (held or again or not is_idle()):
            return
        if held and not again and not waiting:
            others = ", ".join(sorted({each for study in studies for each in holders(study)}))
            say(f"waiting for {len(held)} trials held by {others}; if a machine is gone, stop and use --take-over")
            waiting = True
        if held and is_idle():
            time.sleep(POLL_SECONDS)
