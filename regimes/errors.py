"""Errors shown to the user without traceback, with their exit codes."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A user error, shown without traceback.

    Each line states what is wrong, where, what is allowed and what to do. Line breaks in it, e.g. of a name in a file,
    become spaces, and other control characters are escaped.

    Attributes:
        exit_code: exit code of the command line.
        lines: the lines of the message.
    """

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(_one_line(each) for each in lines)
        super().__init__("\n".join(self.lines))

    @classmethod
    def collect(cls, lines: Iterable[str]) -> None:
        """Raise one error with all lines; do nothing if there are none."""
        found = tuple(lines)
        if found:
            raise cls(*found)


def _one_line(text: str) -> str:
    joined = " ".join(text.splitlines())
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in joined)


class RunFailed(UserError):
    """Error of a completed run in which some cells failed; all other results are kept."""

    exit_code = 1


class OutsideRange(UserError):
    """Error of a query outside the measured range, which cannot be answered reliably."""

    exit_code = 3
