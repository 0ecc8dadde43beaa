"""Errors shown to the user without traceback, with their exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_LINE = 1_000  # characters of a line of a message
SHORT_LINE = 300  # of a line about a description, which quotes what is in it
MAX_LINES = 20  # lines of a message
_READ = 2_000  # characters at either end of a text that are looked at, however long it is
_PASSWORDS = (  # of a URL, of one that is not quite one, in its query
    re.compile(r"(://[^\s:@/]*:)\S*(?=@)"),
    re.compile(r"(:)[^\s:@/]+(?=@)"),
    re.compile(r"([?&;]\w*(?:pass|pwd|secret|token|key)\w*=)[^\s&;'\"]+", re.IGNORECASE),
)


def one_line(text: str, most: int = MAX_LINE) -> str:
    """Return a text as one line that may be shown: printable, short, and without the passwords of URLs.

    Control characters are escaped (``\\x1b``), a password becomes ``***``, and the middle of a long text ``...``.
    """
    if len(text) > 2 * _READ:
        text = f"{text[:_READ]} ... {text[-_READ:]}"
    text = without_passwords("".join(each if each.isprintable() else repr(each)[1:-1] for each in text))
    tail = most // 2
    return text if len(text) <= most else f"{text[: most - tail - 5]} ... {text[-tail:]}"


def without_passwords(text: str) -> str:
    """Return a text with ``***`` in place of the passwords of URLs, which contain no white space."""
    for password in _PASSWORDS:
        text = password.sub(r"\1***", text)
    return text


def printable(text: object) -> str:
    """Return a text as one line without control characters, which a terminal would obey.

    White space becomes spaces; other characters that are not printable (`str.isprintable`) become U+FFFD.
    """
    return "".join(each if each.isprintable() else " " if each.isspace() else "\ufffd" for each in str(text))


class UserError(Exception):
    """A user error, shown without traceback.

    Each line states what is wrong, where, what is allowed and what to do. Lines are shortened and made printable by
    `one_line`; of more than 20 lines, the number of the others is said.

    Attributes:
        exit_code: exit code of the command line.
        lines: the lines of the message.
    """

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        more = [f"... and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES + 1 else []
        self.lines = (*map(one_line, lines[:MAX_LINES] if more else lines), *more)
        super().__init__(*self.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @classmethod
    def collect(cls, lines: Iterable[str]) -> None:
        """Raise one error with all lines, of 300 characters at most; do nothing if there are none."""
        found = [one_line(line, SHORT_LINE) for line in lines]
        if found:
            raise cls(*found)


class RunFailed(UserError):
    """Error of a completed run in which some cells failed; all other results are kept."""

    exit_code = 1


class OutsideRange(UserError):
    """Error of a query outside the measured range, which cannot be answered reliably."""

    exit_code = 3
