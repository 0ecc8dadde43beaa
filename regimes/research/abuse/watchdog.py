"""Time limit of a call."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OverTime(BaseException):
    """The time limit has passed; no `Exception`, so that nothing takes it for a damaged file."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OverTime` in the block after so many seconds of processor time; for the main thread only."""

    def stop(*_: Any) -> None:
        raise OverTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
