"""Errors that speak to the user: one line each, and the exit code the command line ends with."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend. The text is shown as it stands, without a traceback.

    Each line says what is wrong, where, what is allowed and what to do.
    """

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines

    @classmethod
    def collect(cls, lines: Iterable[str]) -> None:
        """Raise one error with all the lines; return quietly when there are none."""
        found = tuple(lines)
        if found:
            raise cls(*found)


class RunFailed(UserError):
    """The run ended, everything else is kept, but some cells failed."""

    exit_code = 1


class OutsideRange(UserError):
    """A question about a setting beyond the measured ones, to which there is no honest answer."""

    exit_code = 3
