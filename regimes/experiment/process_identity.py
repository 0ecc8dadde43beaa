"""Identity of a process, and whether it is alive."""

from __future__ import annotations

import os
import socket
from pathlib import Path

UNKNOWN = "?"  # start time of a process without an entry in /proc


def this_worker() -> str:
    """Return a unique id of this process: host, process id and start time."""
    return f"{socket.gethostname()}/{os.getpid()}/{start_of(os.getpid())}"


def is_dead(name: str) -> bool:
    """Return whether a worker of this machine is gone; workers of other machines count as alive."""
    _, pid, began = name.rsplit("/", 2)
    return is_here(name) and has_ended(int(pid), began)


def is_here(name: str) -> bool:
    """Return whether a worker is or was a process of this machine."""
    return name.rsplit("/", 2)[0] == socket.gethostname()


def has_ended(pid: int, start: str) -> bool:
    """Return whether the process of this machine that had a number and a start time is known to have ended."""
    return start_of(pid) not in (start, UNKNOWN)


def start_of(pid: int) -> str:
    """Return the start time of a process in kernel ticks; "" if there is none, "?" if it is alive but not shown."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _lives(pid)
    return "" if content[0] == "Z" else content[19]


def _lives(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return UNKNOWN
