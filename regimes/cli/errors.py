"""How mistakes, failures and interruptions end a command: a line that helps, and an exit code that tells."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from regimes.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130


def report_user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a UserError into its lines and exit code, Ctrl-C into 130; anything else is a bug and shows itself."""

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

    return wrapped
