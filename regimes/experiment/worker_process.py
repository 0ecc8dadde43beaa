"""Worker process of this machine: it reads fleets from its standard input and writes events to its standard output."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any, Protocol

from regimes.experiment.context import ContextSpec
from regimes.experiment.schedule import Fleet

# By default glibc returns the memory of every large tensor to the system and requests it again in the next layer;
# keeping it makes forward passes on 32x32 images 1.5 times as fast. Other systems ignore these variables.
MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
READY = "ready"  # event: the worker waits for a fleet
Heard = Callable[[Any], None]


class WorkerHandle(Protocol):
    """A process that does fleets. Its events are heard in threads of the main process: `READY` when it waits for a
    fleet, outcomes, warnings and faults, and an EOFError when it has ended."""

    def send(self, fleet: Fleet) -> None:
        """Give it a fleet."""

    def kill(self) -> None:
        """Kill it."""

    def wait(self) -> str:
        """Wait for its end and return how it ended."""


class WorkerProcess:
    """Single-threaded process of this machine, which ends with the main process.

    Args:
        spec: description of its run context.
        heard: function that receives its events.
    """

    def __init__(self, spec: ContextSpec, heard: Heard) -> None:
        self.heard = heard
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "regimes.experiment.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**MALLOC_SETTINGS, **os.environ, **ONE_THREAD},
            # A process group of its own: only the main process receives Ctrl-C, and kills its workers.
            process_group=0 if os.name == "posix" else None,
        )
        self._write(sys.path, spec)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        threading.Thread(target=self._await_death, daemon=True).start()
        heard(READY)  # what it is sent waits in the pipe

    def send(self, fleet: Fleet) -> None:
        """Give it a fleet."""
        self._write(fleet)

    def kill(self) -> None:
        """Kill it and all processes that user code has started in it."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def wait(self) -> str:
        """Wait for its end and return how it ended."""
        code = self.process.wait()
        return f"{f'signal {-code}' if code < 0 else f'exit code {code}'}, out of memory or a native crash?"

    def _write(self, *messages: Any) -> None:
        stdin: IO[bytes] | None = self.process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just died, which is heard
            for message in messages:
                pickle.dump(message, stdin)
            stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(EOFError, pickle.UnpicklingError, OSError):
            while True:
                self.heard(pickle.load(self.process.stdout))

    def _await_death(self) -> None:
        # Not by the end of its output: children that user code has started may hold that pipe open.
        self.process.wait()
        self.listener.join(timeout=1.0)  # outcomes written before it died count
        self.heard(EOFError())
