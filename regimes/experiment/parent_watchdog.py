"""Processes that end with the command that started them."""

from __future__ import annotations

import os
import threading
import time

LOOK = 1.0  # seconds between looks


def end_with(command: int) -> None:
    """End this process once a command (its number) is no longer its parent: it has nobody left to work for.

    For the start of a worker, or an executor's ``initializer``: where a command is killed, its workers would go on, or
    wait for work for ever.
    """
    threading.Thread(target=_watch, args=(command,), daemon=True).start()


def _watch(command: int) -> None:
    while os.getppid() == command:
        time.sleep(LOOK)
    os._exit(1)
