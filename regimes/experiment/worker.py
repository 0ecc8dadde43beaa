"""Worker: does fleets as they come, in a process of its own or in an actor of a cluster."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any


def serve(spec: Any, next_fleet: Callable[[], Any], answer: Callable[[Any], None]) -> None:
    """Do fleets until a `UserError` or a fault of the device or the disk, which is answered; other errors propagate.

    Args:
        spec: description of the run context.
        next_fleet: function that waits for the next fleet.
        answer: function that sends outcomes, warnings, faults, and `READY` whenever a fleet is computed; outcomes
            follow as they are written.
    """
    from regimes.device_faults import DeviceFaultMessage, fault_of
    from regimes.errors import UserError
    from regimes.experiment.async_store import AsyncStore
    from regimes.experiment.context import RunContext
    from regimes.experiment.dispatch import run_fleet
    from regimes.experiment.warning_lines import send_warnings
    from regimes.experiment.worker_process import READY
    from regimes.faults import storage_error_of

    send_warnings(answer)
    store = AsyncStore(spec.folder, answer)
    try:
        context = RunContext(spec)
        while True:
            run_fleet(next_fleet(), context, store, store.report)
            answer(READY)
    except (Exception, SystemExit) as error:
        fault: Any = error if isinstance(error, UserError) else storage_error_of(error)
        fault = fault or (DeviceFaultMessage(fault_of(error)) if fault_of(error) else None)
        if fault is None:
            raise
        store.flush()  # what was computed before
        answer(fault)


def main() -> None:
    """Serve until the main process closes the pipe, then exit immediately, even in the middle of a fleet."""
    # User code must neither read from the input pipe nor print into the output pipe.
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    # Imported before the user's folder is on the path: a queue.py or random.py there must not shadow Python's.
    import torch

    import regimes.experiment.dispatch  # noqa: F401

    torch.set_num_threads(1)
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
            os._exit(0)  # the main process has exited

    serve(spec, inbox.get, answer)
    os._exit(1)


def _receive(orders: Any, inbox: queue.Queue[Any]) -> None:
    try:
        while True:
            inbox.put(pickle.load(orders))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)  # the main process has exited


if __name__ == "__main__":
    main()
