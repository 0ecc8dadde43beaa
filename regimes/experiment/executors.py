"""Executors of fleets: in this process, or in spawned single-threaded worker processes with a supervisor."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

from regimes.device_faults import DeviceFaultMessage
from regimes.errors import UserError
from regimes.experiment.claims import LOOK_INTERVAL, Claims
from regimes.experiment.context import ContextSpec, RunContext, one_thread
from regimes.experiment.dispatch import run_fleet
from regimes.experiment.ready_queue import ReadyQueue
from regimes.experiment.schedule import Fleet
from regimes.experiment.stages.stage import Outcome, Report, Stage
from regimes.experiment.store import Store
from regimes.experiment.warning_lines import WorkerWarning

# By default glibc returns the memory of every large tensor to the system and requests it again in the next layer;
# keeping it makes forward passes on 32x32 images 1.5 times as fast. Other systems ignore these variables.
MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
MAX_ATTEMPTS = 3  # of a fleet whose worker dies, before it counts as failed
MAX_FAULTS = 2  # device faults in a row, after which a worker is not replaced if there are workers on another device


class StopRun(BaseException):
    """Raised by a report function to end a run early (``--fail-fast``); a BaseException, so that stages pass it on."""


def in_process(
    fleets: Iterable[Fleet],
    context: RunContext,
    claims: Claims,
    report: Report,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Do the fleets sequentially in this process, on one thread: for small grids, notebooks and debugging.

    Args:
        fleets: the fleets.
        context: the run context.
        claims: the claims of this command on the run's folder.
        report: function that receives the outcomes.
        until: asked before each fleet whether to stop.
    """
    store = Store(context.spec.folder)
    waiting = ReadyQueue(fleets, store, claims, report)
    with one_thread():
        while not (until() or waiting.is_over):
            fleet = waiting.take()
            if fleet is not None:
                run_fleet(fleet, context, store, waiting.close)
            elif waiting.elsewhere:
                time.sleep(LOOK_INTERVAL)


@dataclass
class _Worker:
    """A worker process that reads fleets from standard input and writes outcomes to standard output.

    Attributes:
        device: its device.
        faults: device faults in a row, before any outcome, of the workers that it replaces and of itself.
        fault: the device fault that it ends by; "": none so far.
        cause: why the supervisor has killed it; "": it has not.
        since: time of its last sign of life, an outcome or a new fleet.
        fleet: the fleet that it computes; None: it is idle.
        given: fleets with an outcome pending, also those that are computed but not yet written.
        owed: keys of the stages with an outcome pending.
    """

    process: subprocess.Popen[bytes]
    device: str
    faults: int = 0
    fault: str = ""
    cause: str = ""
    since: float = field(default_factory=time.monotonic)
    fleet: Fleet | None = None
    given: list[Fleet] = field(default_factory=list)
    owed: set[str] = field(default_factory=set)
    listener: threading.Thread = field(default_factory=threading.Thread)

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def send(self, fleet: Fleet) -> None:
        self.fleet, self.since = fleet, time.monotonic()
        self.given.append(fleet)
        self.owed |= {stage.key for stage in fleet.stages}
        try:
            pickle.dump(fleet, self.stdin)
            self.stdin.flush()
        except BrokenPipeError:
            pass  # it has just died; its listener reports that

    def receive(self, outcome: Outcome) -> None:
        self.faults, self.since = 0, time.monotonic()
        self.owed.discard(outcome.key)
        self.given = [fleet for fleet in self.given if self.left_of(fleet)]

    def left_of(self, fleet: Fleet) -> tuple[Stage, ...]:
        return tuple(stage for stage in fleet.stages if stage.key in self.owed)


class Supervisor:
    """Dispatcher of fleets to workers; it replaces dead workers and requeues their fleets.

    Args:
        fleets: the fleets, handed out as soon as the stages they need are done.
        spec: description of the run context.
        claims: the claims of this command on the run's folder.
        report: function that receives the outcomes.
        workers: number of worker processes.
        devices: devices of the workers, in turn; a worker that replaces a dead one has its device. After two device
            faults in a row it is not replaced if there are workers on another device.
        stage_timeout: seconds without a result after which a worker that has work is killed; its work is tried again as
            if it had died.
    """

    def __init__(
        self,
        fleets: Iterable[Fleet],
        spec: ContextSpec,
        claims: Claims,
        report: Report,
        workers: int,
        devices: Sequence[str],
        stage_timeout: float = math.inf,
    ) -> None:
        self.store = Store(spec.folder)
        self.waiting = ReadyQueue(fleets, self.store, claims, report)
        self.spec = spec
        self.count, self.devices, self.stage_timeout = workers, devices, stage_timeout
        self.deaths: dict[str, list[str]] = {}  # key of a stage: devices of the workers that died on it
        self.workers: list[_Worker] = []
        self.events: queue.Queue[tuple[_Worker, Any]] = queue.Queue()
        self.warned: dict[Any, Any] = {}

    def run(self) -> None:
        """Do all fleets; on any exception, also on Ctrl-C, all workers are killed first.

        Raises:
            UserError: a worker cannot write to the run's folder.
        """
        try:
            count = max(1, min(self.count, len(self.waiting)))
            self.workers = [self._spawn(self.devices[number % len(self.devices)]) for number in range(count)]
            for worker in list(self.workers):
                self._hand_out(worker)
            while self.waiting.elsewhere or any(worker.fleet or worker.owed for worker in self.workers):
                try:
                    self._handle(*self.events.get(timeout=LOOK_INTERVAL))
                except queue.Empty:
                    self._wake_idle()
                self._kill_silent()
        finally:
            for worker in self.workers:
                _kill(worker.process)
            for worker in self.workers:
                worker.process.wait()

    def _spawn(self, device: str, faults: int = 0) -> _Worker:
        environment = {**MALLOC_SETTINGS, **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "regimes.experiment.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # A process group of its own: only the supervisor receives Ctrl-C, and kills its workers.
            process_group=0 if os.name == "posix" else None,
        )
        worker = _Worker(process, device, faults)
        try:
            pickle.dump(sys.path, worker.stdin)
            pickle.dump(replace(self.spec, device=device), worker.stdin)
            worker.stdin.flush()
        except BrokenPipeError:
            pass
        worker.listener = threading.Thread(target=self._listen, args=(worker,), daemon=True)
        worker.listener.start()
        threading.Thread(target=self._await_death, args=(worker,), daemon=True).start()
        return worker

    def _await_death(self, worker: _Worker) -> None:
        # Not by the end of its output: children that user code has started may hold that pipe open.
        worker.process.wait()
        worker.listener.join(timeout=1.0)  # outcomes written before it died count
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
            worker.receive(event)
            self.waiting.close(event)
            self._wake_idle()
        elif isinstance(event, WorkerWarning):
            event.issue(self.warned)
        elif isinstance(event, UserError):
            raise event
        elif isinstance(event, DeviceFaultMessage):
            worker.fault, worker.faults = event.text, worker.faults + 1
        elif isinstance(event, EOFError):
            if worker in self.workers:
                self._replace_dead(worker)
        elif worker in self.workers:  # the fleet is computed
            worker.fleet = None
            self._hand_out(worker)
            self._wake_idle()

    def _kill_silent(self) -> None:
        """Kill the workers that have been without a result for too long; their deaths are handled as any other."""
        for worker in self.workers:
            if worker.owed and not worker.cause and time.monotonic() - worker.since > self.stage_timeout:
                worker.cause = f"no result within {self.stage_timeout:g} s (--stage-timeout)"
                _kill(worker.process)

    def _wake_idle(self) -> None:
        for worker in self.workers:
            if worker.fleet is None:
                self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        fleet = self.waiting.take()
        if fleet is not None:
            worker.send(fleet)

    def _replace_dead(self, worker: _Worker) -> None:
        """Replace a worker that died, unless its device seems lost; requeue its fleets, or fail them."""
        self.workers.remove(worker)
        elsewhere = any(other.device != worker.device for other in self.workers)
        lost = elsewhere and worker.faults >= MAX_FAULTS
        if worker.fault:
            then = f"not replaced after {worker.faults} device faults in a row" if lost else "replaced"
            warnings.warn(f"{worker.device} failed in a worker, which is {then}: {worker.fault}", stacklevel=2)
        code = worker.process.wait()
        _kill(worker.process)
        fleet = worker.fleet
        for given in worker.given:
            if given is not fleet:  # computed but not fully written: not the cause, to be done again
                self.waiting.put_back(Fleet(given.kind, worker.left_of(given)))
        if fleet is not None:
            ended = f"signal {-code}" if code < 0 else f"exit code {code}"
            cause = worker.fault or worker.cause or f"{ended}, out of memory or a native crash?"
            left = Fleet(fleet.kind, worker.left_of(fleet))
            self._retry_or_fail(left, cause, worker.device, elsewhere=elsewhere and worker.fault != "")
        has_work = fleet is not None or worker.given or self.waiting.elsewhere
        if has_work and not lost:  # an idle one is not replaced
            self.workers.append(self._spawn(worker.device, worker.faults))
        self._wake_idle()

    def _retry_or_fail(self, left: Fleet, cause: str, device: str, elsewhere: bool) -> None:
        """Bisect, retry or fail what a dead worker left of its fleet; with ``elsewhere``, it does not fail by deaths on
        this device only."""
        halves = left.halves()
        deaths = [*max((self.deaths.get(stage.key, []) for stage in left.stages), key=len, default=[]), device]
        if len(halves) > 1:  # a single network may be the cause: bisect to find it
            for half in reversed(halves):
                self.waiting.put_back(half)
        elif left.stages and (len(deaths) < MAX_ATTEMPTS or (elsewhere and set(deaths) == {device})):
            self.deaths |= {stage.key: deaths for stage in left.stages}
            self.waiting.put_back(halves[0])
        else:
            line = f"the worker process died {len(deaths)} times on this stage: {cause}"
            for stage in left.stages:
                self.store.fail(stage.key, line, "", stage.coords)
                self.waiting.close(Outcome(stage.key, line))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and all processes that user code has started in it."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def by_processes(
    fleets: Iterable[Fleet],
    spec: ContextSpec,
    claims: Claims,
    report: Report,
    workers: int,
    devices: Sequence[str],
    stage_timeout: float = math.inf,
) -> None:
    """Do the fleets in ``workers`` spawned single-threaded processes; for the arguments see `Supervisor`."""
    Supervisor(fleets, spec, claims, report, workers, devices, stage_timeout).run()
