"""The worker process: reads fleets from standard input, does them, writes outcomes to standard output."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from typing import Any


def main() -> None:
    """Serve until the supervisor closes the pipe; when it is gone, so is this process, in the middle of work too."""
    # A user's code must neither read the orders nor print between the answers.
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    # Before the user's folder comes first on the path: a queue.py or random.py there must not stand in for Python's.
    import torch

    torch.set_num_threads(1)
    from regimes.experiment.async_store import AsyncStore
    from regimes.experiment.context import RunContext
    from regimes.experiment.dispatch import run_fleet

    sys.path[:] = pickle.load(orders)
    spec = pickle.load(orders)
    inbox: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_receive, args=(orders, inbox), daemon=True).start()

    speaking = threading.Lock()

    def answer(message: Any) -> None:
        try:
            with speaking:
                pickle.dump(message, answers)
                answers.flush()
        except BrokenPipeError:
            os._exit(0)  # the supervisor has gone; no stage is to blame

    context, store = RunContext(spec), AsyncStore(spec.folder, answer)
    while True:
        run_fleet(inbox.get(), context, store, store.report)
        answer("computed")  # and ready for the next fleet; this one's outcomes follow as they are written


def _receive(orders: Any, inbox: queue.Queue[Any]) -> None:
    try:
        while True:
            inbox.put(pickle.load(orders))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)  # the supervisor has gone


if __name__ == "__main__":
    main()
