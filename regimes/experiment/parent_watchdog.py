"""Watchdog that ends a worker process when its parent has died."""

from __future__ import annotations

import os
import threading
import time

POLL_SECONDS = 1.0


def exit_with_parent(command: int) -> None:
    """Exit this process when its parent process, of id ``command``, has died.

    To be called at the start of a worker, or as an executor's ``initializer``; otherwise the workers of a killed
    command would keep running or wait forever.
    """
    threading.Thread(target=_watch, args=(command,), daemon=True).start()


def _watch(command: int) -> None:
    while os.getppid() == command:
        time.sleep(POLL_SECONDS)
    os._exit(1)
