"""End of a command by user errors, failures and interruptions: one line on stderr and an exit code."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TextIO, TypeVar

from regimes.faults import user_error_of

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130


def report_user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a UserError or a storage fault and exit with 2, a device fault and exit with 1; exit with 130 on Ctrl-C or
    SIGTERM, at once on the second.

    Other exceptions are bugs and propagate.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _interrupt)
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            print("regimes: interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_closed(sys.stdout):  # | head
                sys.stderr.close()
                sys.exit(0)
            known = user_error_of(error)
            if known is None:
                raise
            for line in known.lines:
                print(f"regimes: {line}", file=sys.stderr)
            sys.exit(known.exit_code)

    return wrapped


def _is_closed(stream: TextIO) -> bool:
    """Return whether nobody reads a stream any more."""
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    return False


_interruptions: list[int] = []


def _interrupt(number: int, frame: object) -> None:
    """Interrupt the command, which then cleans up; leave at once the second time: files are written atomically."""
    _interruptions.append(number)
    if len(_interruptions) > 1:
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt
