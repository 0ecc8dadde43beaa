"""A store that writes in the background: a worker trains its next fleet while the last one's weights go to disk."""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from regimes.experiment.atomic_files import Record
from regimes.experiment.stages.stage import Outcome, Report
from regimes.experiment.store import Store

if TYPE_CHECKING:
    from torch import Tensor

DEPTH = 32  # stages that may wait to be written, which bounds memory: a slow disk then holds the training up


class AsyncStore(Store):
    """A store whose `write` returns at once; a thread does the writing, in order.

    What is reported of a stage waits behind its write, so that nobody hears of a stage that is not on disk. A write
    that fails (a full disk) makes the stage a failed one.
    """

    def __init__(self, folder: str | Path, answer: Report) -> None:
        super().__init__(folder)
        self._answer = answer
        self._queue: queue.Queue[tuple[str, Record, Mapping[str, Tensor] | None] | Outcome] = queue.Queue(DEPTH)
        self._failed: dict[str, str] = {}
        threading.Thread(target=self._serve, daemon=True).start()

    def write(self, key: str, record: Record, weights: Mapping[str, Tensor] | None = None) -> None:
        """Have a finished stage written; the tensors must not change any more."""
        self._queue.put((key, record, weights))

    def report(self, outcome: Outcome) -> None:
        """Report a stage once everything before it is written."""
        self._queue.put(outcome)

    def flush(self) -> None:
        """Wait until everything is written and reported."""
        self._queue.join()

    def _serve(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, Outcome):
                error = self._failed.pop(item.key, item.error)
                self._answer(Outcome(item.key, error))
            else:
                self._write(*item)
            self._queue.task_done()

    def _write(self, key: str, record: Record, weights: Mapping[str, Tensor] | None) -> None:
        try:
            super().write(key, record, weights)
        except Exception as error:
            self._failed[key] = f"{type(error).__name__}: {error}".splitlines()[0]
            # The disk that took no record may take no failure either; the supervisor still hears of it.
            with contextlib.suppress(OSError):
                self.fail(key, self._failed[key], traceback.format_exc(), record["at"])
