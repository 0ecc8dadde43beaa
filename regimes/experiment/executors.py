"""Executors: how fleets get done - in this process, or by a supervisor over spawned single-threaded processes."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any

from regimes.experiment.context import ContextSpec, RunContext, one_thread
from regimes.experiment.dispatch import run_fleet
from regimes.experiment.ready_queue import ReadyQueue
from regimes.experiment.schedule import Fleet
from regimes.experiment.stages.stage import Outcome, Report, Stage
from regimes.experiment.store import Store

# glibc gives the memory of every large tensor back to the system and asks for it again at the next layer; keeping it
# makes forward passes on 32x32 images 1.5 times as fast. Other systems do not read these names.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
TRIES = 3  # a fleet whose worker died is handed out this often before it counts as failed


class StopRun(BaseException):
    """Raised by a report to end a run early (``--fail-fast``); no stage may take it for its own failure."""


def in_process(fleets: Iterable[Fleet], spec: ContextSpec, report: Report) -> None:
    """Do the fleets one after another in this process, on one thread: for small grids, notebooks and debugging."""
    store, waiting = Store(spec.folder), ReadyQueue(fleets)

    def note(outcome: Outcome) -> None:
        waiting.close(outcome)
        report(outcome)

    with one_thread():
        context = RunContext(spec)
        while (fleet := waiting.take()) is not None:
            run_fleet(fleet, context, store, note)


@dataclass
class _Worker:
    """A spawned process: fleets go in by its standard input, outcomes come out by its standard output.

    Attributes:
        fleet: that it computes now; None: it waits for one.
        given: fleets of which it still owes an outcome, computed ones that are being written among them.
        owed: keys of the stages whose outcome it owes.
    """

    process: subprocess.Popen[bytes]
    fleet: Fleet | None = None
    given: list[Fleet] = field(default_factory=list)
    owed: set[str] = field(default_factory=set)
    listener: threading.Thread = field(default_factory=threading.Thread)

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def give(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.given.append(fleet)
        self.owed |= {stage.key for stage in fleet.stages}
        try:
            pickle.dump(fleet, self.stdin)
            self.stdin.flush()
        except BrokenPipeError:
            pass  # it has just died; its reader will say so

    def hear(self, outcome: Outcome) -> None:
        self.owed.discard(outcome.key)
        self.given = [fleet for fleet in self.given if self.left_of(fleet)]

    def left_of(self, fleet: Fleet) -> tuple[Stage, ...]:
        return tuple(stage for stage in fleet.stages if stage.key in self.owed)


class Supervisor:
    """Hands fleets to workers as their needs are met, puts a dead worker's fleet back, and never waits in vain."""

    def __init__(self, fleets: Iterable[Fleet], spec: ContextSpec, report: Report, workers: int) -> None:
        self.waiting = ReadyQueue(fleets)
        self.spec = spec
        self.report = report
        self.count = workers
        self.store = Store(spec.folder)
        self.deaths: dict[str, int] = {}
        self.workers: list[_Worker] = []
        self.events: queue.Queue[tuple[_Worker, Any]] = queue.Queue()

    def run(self) -> None:
        """Do all fleets; on any exception (Ctrl-C too) every worker is ended before it is passed on."""
        try:
            self.workers = [self._spawn() for _ in range(max(1, min(self.count, len(self.waiting))))]
            for worker in list(self.workers):
                self._hand_out(worker)
            while any(worker.fleet or worker.owed for worker in self.workers):
                self._handle(*self.events.get())
        finally:
            for worker in self.workers:
                _kill(worker.process)
            for worker in self.workers:
                worker.process.wait()

    def _spawn(self) -> _Worker:
        environment = {**KEEP_MEMORY, **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "regimes.experiment.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # A process group of its own: Ctrl-C is for the supervisor to hear, which then ends its workers.
            process_group=0 if os.name == "posix" else None,
        )
        worker = _Worker(process)
        try:
            pickle.dump(sys.path, worker.stdin)
            pickle.dump(self.spec, worker.stdin)
            worker.stdin.flush()
        except BrokenPipeError:
            pass
        worker.listener = threading.Thread(target=self._listen, args=(worker,), daemon=True)
        worker.listener.start()
        threading.Thread(target=self._await_death, args=(worker,), daemon=True).start()
        return worker

    def _await_death(self, worker: _Worker) -> None:
        # Not left to the end of its answers: children that a user's code has started may hold that pipe open.
        worker.process.wait()
        worker.listener.join(timeout=1.0)  # what it answered before it died counts
        self.events.put((worker, EOFError()))

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        try:
            while True:
                self.events.put((worker, pickle.load(worker.process.stdout)))
        except (EOFError, pickle.UnpicklingError, OSError):
            return

    def _handle(self, worker: _Worker, event: Any) -> None:
        if isinstance(event, Outcome):
            worker.hear(event)
            self._close(event)
            self._wake_idle()
        elif isinstance(event, EOFError):
            if worker in self.workers:
                self._bury(worker)
        elif worker in self.workers:  # the fleet is computed
            worker.fleet = None
            self._hand_out(worker)
            self._wake_idle()

    def _close(self, outcome: Outcome) -> None:
        self.waiting.close(outcome)
        self.report(outcome)

    def _wake_idle(self) -> None:
        for worker in self.workers:
            if worker.fleet is None:
                self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        fleet = self.waiting.take()
        if fleet is not None:
            worker.give(fleet)

    def _bury(self, worker: _Worker) -> None:
        """Replace a worker that died; its fleet is put back, or fails after too many deaths."""
        self.workers.remove(worker)
        code = worker.process.wait()
        _kill(worker.process)
        fleet = worker.fleet
        for given in worker.given:
            if given is not fleet:  # computed, but not all of it was written: not to blame, and to be done again
                self.waiting.put_back(Fleet(given.kind, worker.left_of(given)))
        if fleet is not None:
            self._blame(fleet.kind, worker.left_of(fleet), code)
        if fleet is not None or worker.given:  # an idle one is not replaced: the others go on without it
            self.workers.append(self._spawn())
        self._wake_idle()

    def _blame(self, kind: str, left: tuple[Stage, ...], code: int) -> None:
        """What a dead worker was computing is cut in two, tried again, or given up."""
        halves = Fleet(kind, left).halves()
        deaths = max((self.deaths.get(stage.key, 0) for stage in left), default=0) + 1
        if len(halves) > 1:  # one network may have killed it for all: cut the fleet until that one is alone
            for half in reversed(halves):
                self.waiting.put_back(half)
        elif deaths < TRIES and left:
            self.deaths |= {stage.key: deaths for stage in left}
            self.waiting.put_back(halves[0])
        else:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            line = f"the worker process died {deaths} times on it ({how}): out of memory, or a native crash?"
            for stage in left:
                self.store.fail(stage.key, line, "", stage.at)
                self._close(Outcome(stage.key, line))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a worker and whatever a user's code has started in it."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def by_processes(fleets: Iterable[Fleet], spec: ContextSpec, report: Report, workers: int) -> None:
    """Do the fleets in ``workers`` spawned processes of one thread each."""
    Supervisor(fleets, spec, report, workers).run()
