"""Store with a background writer thread, so that a worker trains while it writes."""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regimes.errors import UserError
from regimes.experiment.atomic_files import Record
from regimes.experiment.stages.stage import Outcome
from regimes.experiment.store import Store
from regimes.faults import storage_error_of

if TYPE_CHECKING:
    from torch import Tensor

MAX_QUEUED = 32  # stages waiting to be written; bounds memory: when the queue is full, training waits for the disk


class AsyncStore(Store):
    """Store whose `write` returns immediately; a thread writes in order.

    A stage is reported only after it is written. If a write fails, the stage is reported as failed; after a storage
    fault (full disk) nothing is written or reported any more but the fault.

    Args:
        folder: the run folder.
        report: function that receives the outcomes, and the error of a storage fault; called in the writer thread.
    """

    def __init__(self, folder: str | Path, report: Callable[[Any], None]) -> None:
        super().__init__(folder)
        self._report = report
        self._queue: queue.Queue[tuple[str, Record, Mapping[str, Tensor] | None] | Outcome] = queue.Queue(MAX_QUEUED)
        self._failed: dict[str, str] = {}
        self._fault: UserError | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def write(self, key: str, record: Record, weights: Mapping[str, Tensor] | None = None) -> None:
        """Queue a finished stage for writing; its tensors must not change afterwards."""
        self._queue.put((key, record, weights))

    def report(self, outcome: Outcome) -> None:
        """Report an outcome after everything queued before it is written."""
        self._queue.put(outcome)

    def flush(self) -> None:
        """Wait until everything is written and reported."""
        self._queue.join()

    def _serve(self) -> None:
        while True:
            item = self._queue.get()
            if self._fault is not None:
                pass
            elif isinstance(item, Outcome):
                self._report(replace(item, error=self._failed.pop(item.key, item.error)))
            else:
                self._write(*item)
            self._queue.task_done()

    def _write(self, key: str, record: Record, weights: Mapping[str, Tensor] | None) -> None:
        try:
            super().write(key, record, weights)
        except Exception as error:
            self._fault = storage_error_of(error)
            if self._fault is not None:
                self._report(self._fault)
                return
            self._failed[key] = f"{type(error).__name__}: {error}".splitlines()[0]
            # Writing the failure may fail, too; it is still reported.
            with contextlib.suppress(OSError):
                self.fail(key, self._failed[key], traceback.format_exc(), record["at"])
