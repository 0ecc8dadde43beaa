"""Claims: the work that each command has begun, so that several commands on one folder share it.

A command writes a file ``claims/HOST-PID-….owner`` and touches it every ten seconds. A claim on some work is a hard
link ``claims/NAME.N`` to that file: links are created atomically, also on shared file systems, and one touch renews all
claims of a command. A claim is stale once its owner is known to have ended, which is seen on the same machine, or once
the file has not been touched for three minutes by the clock of the file system. Work whose claims are all stale is
claimed with the next number.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from regimes.experiment.atomic_files import HOST, write_atomic
from regimes.experiment.process_identity import has_ended, start_of

FOLDER = "claims"
HEARTBEAT = 10.0  # seconds between two touches
LOOK_INTERVAL = 0.5  # seconds between looks at the work of other commands
REGISTER_ATTEMPTS = 5
STALE_AFTER = 180.0  # seconds without a touch; clients of a network file system may see times a minute old

T = TypeVar("T")


@dataclass(frozen=True)
class Owner:
    """A command that works on a folder.

    Attributes:
        host, pid: its machine's name and its process.
        machine: identity of the booted machine and its process namespace; process numbers are comparable within one.
        started: start of the process, which tells it from a later one of the same number; see `start_of`.
        workers: number of worker processes.
    """

    host: str
    pid: int
    machine: str
    started: str
    workers: int

    @classmethod
    def here(cls, workers: int) -> Owner:
        """Return the owner of this process."""
        return cls(platform.node(), os.getpid(), _machine(), start_of(os.getpid()), workers)

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended."""
        return self.machine == _machine() and has_ended(self.pid, self.started)


class Claims:
    """The claims of one command in a folder; a context manager that keeps them fresh and gives them up at its end.

    Args:
        folder: the run folder.
        workers: number of worker processes of this command.
    """

    def __init__(self, folder: str | Path, workers: int = 1) -> None:
        self.folder = Path(folder) / FOLDER
        self.me = Owner.here(workers)
        self.file = self.folder / f"{HOST}-{self.me.pid}-{uuid.uuid4().hex[:8]}.owner"
        self._held: dict[str, Path] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claims:
        self._register()
        self._remove_stale()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        self.file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are there
            self.folder.rmdir()

    def take(self, name: str) -> bool:
        """Claim some work; return whether it is this command's now."""
        if name in self._held:
            return True
        while not self._is_taken(found := self._claims_on(name)):
            path = self.folder / f"{name}.{max(found, default=0) + 1}"
            if not self._link(path):
                continue
            # Stale claims may have been removed and claimed anew since they were looked at.
            if self._is_taken(self._claims_on(name)):
                path.unlink(missing_ok=True)
                return False
            self._held[name] = path
            return True
        return False

    def release(self, name: str) -> None:
        """Give up a claim."""
        path = self._held.pop(name, None)
        if path is not None and self._is_ours(path):
            path.unlink(missing_ok=True)

    def is_taken(self, name: str) -> bool:
        """Return whether another living command has claimed some work."""
        return self._is_taken(self._claims_on(name))

    def in_turn(self, work: Iterable[T], name: Callable[[T], str]) -> Iterator[T]:
        """Yield pieces of work as they can be claimed, each claimed until the next one is asked for.

        What other commands have claimed comes when they are finished with it.
        """
        left = list(work)
        while left:
            for piece in list(left):
                if self.take(name(piece)):
                    left.remove(piece)
                    yield piece
                    self.release(name(piece))
            if left:
                time.sleep(LOOK_INTERVAL)

    def others(self) -> list[Owner]:
        """Return the other living commands."""
        return [owner for path, owner in _owners(self.folder) if path != self.file and not self._is_stale(path)]

    def _claims_on(self, name: str) -> dict[int, Path]:
        """The claims on some work, stale ones too, by number."""
        return {int(path.suffix[1:]): path for path in self.folder.glob(f"{name}.*") if path.suffix[1:].isdigit()}

    def _is_taken(self, found: Mapping[int, Path]) -> bool:
        return any(path.exists() and not self._is_ours(path) and not self._is_stale(path) for path in found.values())

    def _is_ours(self, path: Path) -> bool:
        try:
            return path.samefile(self.file)
        except FileNotFoundError:
            return False

    def _link(self, path: Path) -> bool:
        """Create a claim; return whether it is ours."""
        try:
            os.link(self.file, path)
        except FileExistsError:
            return self._is_ours(path)  # a network file system may have lost the answer to the first request
        except FileNotFoundError:  # the folder was removed meanwhile
            self._register()
            return False
        return True

    def _register(self) -> None:
        content = json.dumps(vars(self.me)).encode()
        for _ in range(REGISTER_ATTEMPTS):
            try:
                write_atomic(self.file, content)
            except FileNotFoundError:  # another command, which was the last one, has just removed the folder
                continue
            return
        write_atomic(self.file, content)

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # out of reach for the moment
                try:
                    os.utime(self.file)
                except FileNotFoundError:
                    self._register()

    def _is_stale(self, path: Path) -> bool:
        """Whether the owner of a claim, or of an owner's file, is no longer at work; not if the file was removed."""
        try:
            owner, touched = _read(path), path.stat().st_mtime
            age = self.file.stat().st_mtime - touched  # by the clock of the file system
        except FileNotFoundError:
            return False
        return age > STALE_AFTER or (owner is not None and owner.is_dead)

    def _remove_stale(self) -> None:
        for path in self.folder.iterdir():
            if path != self.file and path.suffix != ".tmp" and self._is_stale(path):
                path.unlink(missing_ok=True)


def owners(folder: str | Path) -> list[Owner]:
    """Return the commands that are working on a folder, by this machine's clock, without writing to it."""
    working, since = [], time.time() - STALE_AFTER
    for path, owner in _owners(Path(folder) / FOLDER):
        with contextlib.suppress(FileNotFoundError):
            if not owner.is_dead and path.stat().st_mtime > since:
                working.append(owner)
    return working


def _owners(folder: Path) -> Iterator[tuple[Path, Owner]]:
    for path in sorted(folder.glob("*.owner")):
        with contextlib.suppress(FileNotFoundError):
            owner = _read(path)
            if owner is not None:
                yield path, owner


def _read(path: Path) -> Owner | None:
    """The owner in a file; None if it is damaged."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        return None


@cache
def _machine() -> str:
    """The identity of the booted machine and, on Linux, of its process namespace."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
