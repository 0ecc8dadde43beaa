"""Which process works on a trial, and whether it is still there."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_worker() -> str:
    """This process, told from all others that ever ran on this machine: host, process id, and when it began."""
    return f"{socket.gethostname()}/{os.getpid()}/{_began(os.getpid())}"


def is_dead(name: str) -> bool:
    """Whether a worker of this machine is gone; of other machines nothing is known, so theirs count as alive."""
    _, pid, began = name.rsplit("/", 2)
    return is_here(name) and _began(int(pid)) != began


def is_here(name: str) -> bool:
    """Whether a worker is, or was, one of this machine's."""
    return name.rsplit("/", 2)[0] == socket.gethostname()


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" where there is none, "?" where only that it lives is known."""
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
    return "?"
