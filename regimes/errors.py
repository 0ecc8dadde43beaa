"""Errors shown to the user without traceback, with their exit codes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def printable(text: object) -> str:
    """Return a text as one line without control characters, which a terminal would obey.

    Line breaks and tabs become spaces; other characters of the Unicode categories C (control, format, surrogate,
    unassigned) and separators become U+FFFD.
    """
    return "".join(each if _is_printable(each) else " " if each.isspace() else "\ufffd" for each in str(text))


def _is_printable(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


class UserError(Exception):
    """A user error, shown without traceback.

    Each line states what is wrong, where, what is allowed and what to do, in printable characters.

    Attributes:
        exit_code: exit code of the command line.
        lines: the lines of the message.
    """

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(map(printable, lines))
        super().__init__("\n".join(self.lines))

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
