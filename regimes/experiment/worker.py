"""Worker process: reads fleets from standard input, does them, and writes outcomes to standard output."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from typing import Any


def main() -> None:
    """Serve until the supervisor closes the pipe, then exit immediately, even in the middle of a fleet."""
    # User code must neither read from the input pipe nor print into the output pipe.
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    # Imported before the user's folder is on the path: a queue.py or random.py there must not shadow Python's.
    import torch

    torch.set_num_threads(1)
    from regimes.device_faults import DeviceFaultMessage, fault_of
    from regimes.experiment.async_store import AsyncStore
    from regimes.experiment.context import RunContext
    from regimes.experiment.dispatch import run_fleet
    from regimes.experiment.warning_lines import send_warnings
    from regimes.faults import storage_error_of

    sys.path[:] = pickle.load(orders)
    spec = pickle.load(orders)
    inbox: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_receive, args=(orders, inbox), daemon=True).start()

    lock = threading.Lock()

    def answer(message: Any) -> None:
        try:
            with lock:
                pickle.dump(message, answers)
                answers.flush()
        except BrokenPipeError:
            os._exit(0)  # the supervisor has exited

    send_warnings(answer)
    store = AsyncStore(spec.folder, answer)
    try:
        context = RunContext(spec)
        while True:
            run_fleet(inbox.get(), context, store, store.report)
            answer("computed")  # ready for the next fleet; the outcomes follow as they are written
    except (Exception, SystemExit) as error:
        fault = storage_error_of(error) or (DeviceFaultMessage(fault_of(error)) if fault_of(error) else None)
        if fault is None:
            raise
        store.flush()  # what was computed before
        answer(fault)
        os._exit(1)


def _receive(orders: Any, inbox: queue.Queue[Any]) -> None:
    try:
        while True:
            inbox.put(pickle.load(orders))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)  # the supervisor has exited


if __name__ == "__main__":
    main()
