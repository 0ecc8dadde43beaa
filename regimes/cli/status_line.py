"""Progress line of a search, on standard error."""

from __future__ import annotations

import sys
import time

LINE_INTERVAL = 5.0  # seconds between lines where they do not replace each other
REDRAW_INTERVAL = 0.2  # seconds between redraws in a terminal


class StatusLine:
    """A line that replaces the one before in a terminal, and messages on lines of their own."""

    def __init__(self) -> None:
        self.replace = sys.stderr.isatty()
        self.started = self.last_line = time.monotonic()
        self.open = False

    def message(self, text: str) -> None:
        """Print a message on a line of its own."""
        self.end()
        print(text, file=sys.stderr, flush=True)

    def is_due(self) -> bool:
        """Return whether a line is to be shown now; if so, the next one is due after the interval."""
        due = time.monotonic() - self.last_line >= (REDRAW_INTERVAL if self.replace else LINE_INTERVAL)
        if due:
            self.last_line = time.monotonic()
        return due

    def show(self, text: str) -> None:
        """Print the line."""
        self.open = self.replace
        start, end = ("\r\033[K", "") if self.replace else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the line."""
        if self.open:
            print(file=sys.stderr)
            self.open = False
