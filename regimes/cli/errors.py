"""End of a command by user errors, failures and interruptions: one line on stderr and an exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from regimes.device_faults import fault_of
from regimes.errors import RunFailed, UserError

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130


def report_user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a UserError and exit with its code, a device fault and exit with 1; exit with 130 on Ctrl-C.

    Other exceptions are bugs and propagate.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            for line in error.lines:
                print(f"regimes: {line}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("regimes: interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # | head
            sys.stderr.close()
            sys.exit(0)
        except OSError as error:  # a full disk, a folder that may not be written
            if error.filename is None:
                raise
            print(f"regimes: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(UserError.exit_code)
        except Exception as error:
            fault = fault_of(error)
            if not fault:
                raise
            print(f"regimes: {fault}; what is finished is kept: run the same command again", file=sys.stderr)
            sys.exit(RunFailed.exit_code)

    return wrapped
