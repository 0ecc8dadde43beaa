"""Optuna journal file that survives a full disk and a power cut."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from regimes.errors import UserError

LOCK_GRACE_PERIOD = 15  # seconds after which a lock counts as stale


class Journal(JournalFileBackend):
    """Journal file whose unfinished last line, left by a full disk or a power cut, is dropped under the lock.

    Optuna's own would append to such a line, after which the file can no longer be read. Other damage is an error that
    names the line.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, lock_obj=_RepairingLock(path))
        self.path = path

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Iterate over the operations from a number on.

        Raises:
            UserError: a line is damaged.
        """
        number = log_number_from
        try:
            for log in super().read_logs(log_number_from):
                if not isinstance(log, dict):
                    raise ValueError
                yield log
                number += 1
        except ValueError as error:
            raise _damaged(self.path, f"line {number + 1}") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations.

        Raises:
            OSError: the file cannot be written; the error names it.
            UserError: its last line is damaged.
        """
        try:
            super().append_logs(logs)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error


class _RepairingLock(JournalFileOpenLock):
    """Lock of a journal that drops an unfinished last line as soon as it is acquired."""

    def __init__(self, path: str) -> None:
        super().__init__(path, grace_period=LOCK_GRACE_PERIOD)
        self.path = path

    def acquire(self) -> bool:
        acquired = super().acquire()
        try:
            self._repair()
        except BaseException:
            self.release()
            raise
        return acquired

    def _repair(self) -> None:
        with open(self.path, "r+b") as journal:
            size = journal.seek(0, os.SEEK_END)
            tail, start = b"", size
            while start and tail.count(b"\n", 0, -1) == 0:  # back to the beginning of the last line
                step = min(start, 4096)
                start -= step
                journal.seek(start)
                tail = journal.read(step) + tail
            if tail and not tail.endswith(b"\n"):
                journal.truncate(start + tail.rfind(b"\n") + 1)
            elif tail:
                try:
                    json.loads(tail.splitlines()[-1])
                except ValueError as error:
                    raise _damaged(self.path, "its last line") from error


def _damaged(path: str, line: str) -> UserError:
    return UserError(f"{path}: {line} is damaged; put back a copy of the file, or begin again with another --out")
