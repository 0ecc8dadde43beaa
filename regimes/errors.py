"""Errors shown to the user without traceback, with their exit codes."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A user error, shown without traceback.

    Each line states what is wrong, where, what is allowed and what to do.

    Attributes:
        exit_code: exit code of the command line.
        lines: the lines of the message.
    """

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines

    @classmethod
    def collect(cls, lines: Iterable[str]) -> None:
        """Raise one error with all lines; do nothing if there are none."""
        found = tuple(lines)
        if found:
            raise cls(*found)


class RunFailed(UserError):
    """Error of a completed run in which some cells failed; all other results are kept."""

    exit_code = 1


class OutsideRange(UserError):
    """Error of a query outside the measured range, which cannot be answered reliably."""

    exit_code = 3
