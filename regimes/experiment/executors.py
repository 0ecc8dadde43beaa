"""Executors of fleets: in this process, or by workers (processes, actors of a Ray cluster) with a supervisor."""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regimes.device_faults import DeviceFaultMessage
from regimes.errors import RunFailed, UserError
from regimes.experiment.claims import LOOK_INTERVAL, Claims
from regimes.experiment.context import ContextSpec, RunContext, one_thread
from regimes.experiment.dispatch import run_fleet
from regimes.experiment.environment import default_workers
from regimes.experiment.ray_worker import RayWorker, ray_cluster
from regimes.experiment.ready_queue import ReadyQueue
from regimes.experiment.schedule import Fleet
from regimes.experiment.stages.stage import Outcome, Report, Stage
from regimes.experiment.store import Store
from regimes.experiment.warning_lines import WorkerWarning
from regimes.experiment.worker_process import READY, Heard, WorkerHandle, WorkerProcess

EXECUTORS = ("processes", "ray")
MAX_ATTEMPTS = 3  # of a fleet whose worker dies, before it counts as failed
MAX_DEATHS_IN_A_ROW = 50  # of workers, without any outcome meanwhile, after which the run ends
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
    store, errors = Store(context.spec.folder), list[Exception]()

    def guarded(outcome: Outcome) -> None:  # stages would take an error of the report for their own
        try:
            report(outcome)
        except Exception as error:
            errors.append(error)

    waiting = ReadyQueue(fleets, store, claims, guarded)
    with one_thread():
        while not (until() or waiting.is_over):
            fleet = waiting.take()
            if fleet is not None:
                run_fleet(fleet, context, store, waiting.close)
                if errors:
                    raise errors[0]
            elif waiting.elsewhere:
                time.sleep(LOOK_INTERVAL)


@dataclass(frozen=True)
class Pool:
    """Workers of a command.

    Attributes:
        workers: their number; 0: the main process does the work itself.
        start: function that starts one.
        stage_timeout: seconds without a result after which a worker that has work is killed; its work is tried again as
            if it had died.
    """

    workers: int
    start: Callable[[ContextSpec, Heard], WorkerHandle] = WorkerProcess
    stage_timeout: float = math.inf


@contextlib.contextmanager
def pool_of(
    executor: str,
    workers: int | None,
    devices: Sequence[str],
    address: str | None = None,
    gpus: float | None = None,
    stage_timeout: float = math.inf,
) -> Iterator[Pool]:
    """Yield the workers of an executor; for the arguments see `regimes.experiment.run.run`.

    Raises:
        UserError: options that do not belong together, or a Ray cluster that cannot be reached.
    """
    if executor not in EXECUTORS:
        raise UserError(f"--executor {executor}: unknown; allowed: {', '.join(EXECUTORS)}")
    if executor == "processes":
        if address is not None or gpus is not None:
            raise UserError("--address and --gpus belong to --executor ray; add it, or leave them out")
        count = default_workers(tuple(devices)) if workers is None else workers
        if not count and stage_timeout < math.inf:
            raise UserError("--stage-timeout: needs worker processes, which can be killed; use --workers 1 or more")
        yield Pool(count, stage_timeout=stage_timeout)
        return
    if workers == 0:
        raise UserError("--executor ray: its workers are processes; use --workers 1 or more, or leave it out")
    on_cuda = devices[0].startswith("cuda")
    if gpus and not on_cuda:
        raise UserError(f"--gpus {gpus:g}: needs --device cuda, got {devices[0]}")
    each = gpus if gpus is not None else float(on_cuda)
    with ray_cluster(address, workers, each) as count:
        yield Pool(count, functools.partial(RayWorker, gpus=each), stage_timeout)


@dataclass
class _Worker:
    """A worker with the work that it has been given.

    Attributes:
        device: its device.
        handle: its process.
        idle: whether it waits for a fleet.
        faults: device faults in a row, before any outcome, of the workers that it replaces and of itself.
        fault: the device fault that it ends by; "": none so far.
        cause: why the supervisor has killed it; "": it has not.
        since: time of its last sign of life, an outcome or a new fleet.
        fleet: the fleet that it computes; None: none.
        given: fleets with an outcome pending, also those that are computed but not yet written.
        owed: keys of the stages with an outcome pending.
    """

    device: str
    faults: int = 0
    handle: WorkerHandle = field(init=False)
    idle: bool = False
    fault: str = ""
    cause: str = ""
    since: float = field(default_factory=time.monotonic)
    fleet: Fleet | None = None
    given: list[Fleet] = field(default_factory=list)
    owed: set[str] = field(default_factory=set)

    def send(self, fleet: Fleet) -> None:
        self.fleet, self.idle, self.since = fleet, False, time.monotonic()
        self.given.append(fleet)
        self.owed |= {stage.key for stage in fleet.stages}
        self.handle.send(fleet)

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
        pool: number of workers, and how they are started.
        devices: devices of the workers, in turn; a worker that replaces a dead one has its device. After two device
            faults in a row it is not replaced if there are workers on another device.
    """

    def __init__(
        self,
        fleets: Iterable[Fleet],
        spec: ContextSpec,
        claims: Claims,
        report: Report,
        pool: Pool,
        devices: Sequence[str],
    ) -> None:
        self.store = Store(spec.folder)
        self.waiting = ReadyQueue(fleets, self.store, claims, report)
        self.spec, self.pool, self.devices = spec, pool, devices
        self.deaths: dict[str, list[str]] = {}  # key of a stage: devices of the workers that died on it
        self.workers: list[_Worker] = []
        self.events: queue.Queue[tuple[_Worker, Any]] = queue.Queue()
        self.warned: dict[Any, Any] = {}
        self.deaths_in_a_row = 0

    def run(self) -> None:
        """Do all fleets; on any exception, also on Ctrl-C, all workers are killed first.

        Raises:
            UserError: a worker cannot write to the run's folder, or has other data or numerics than the run.
            RunFailed: workers die one after the other without any result.
        """
        try:
            for number in range(min(self.pool.workers, len(self.waiting))):
                self.workers.append(self._spawn(self.devices[number % len(self.devices)]))
            while not self.waiting.is_over or any(worker.fleet or worker.owed for worker in self.workers):
                try:
                    self._handle(*self.events.get(timeout=LOOK_INTERVAL))
                except queue.Empty:
                    self._wake_idle()
                self._kill_silent()
        finally:
            for worker in self.workers:
                worker.handle.kill()
            for worker in self.workers:
                worker.handle.wait()

    def _spawn(self, device: str, faults: int = 0) -> _Worker:
        worker = _Worker(device, faults)
        worker.handle = self.pool.start(
            replace(self.spec, device=device), lambda event: self.events.put((worker, event))
        )
        return worker

    def _handle(self, worker: _Worker, event: Any) -> None:
        if isinstance(event, Outcome):
            worker.receive(event)
            self.deaths_in_a_row = 0
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
        elif event == READY and worker in self.workers:
            worker.fleet, worker.idle = None, True
            self._wake_idle()

    def _kill_silent(self) -> None:
        """Kill the workers that have been without a result for too long; their deaths are handled as any other."""
        for worker in self.workers:
            if worker.owed and not worker.cause and time.monotonic() - worker.since > self.pool.stage_timeout:
                worker.cause = f"no result within {self.pool.stage_timeout:g} s (--stage-timeout)"
                worker.handle.kill()

    def _wake_idle(self) -> None:
        for worker in self.workers:
            if worker.idle and (fleet := self.waiting.take()) is not None:
                worker.send(fleet)

    def _replace_dead(self, worker: _Worker) -> None:
        """Replace a worker that died, unless its device seems lost; requeue its fleets, or fail them."""
        self.workers.remove(worker)
        elsewhere = any(other.device != worker.device for other in self.workers)
        lost = elsewhere and worker.faults >= MAX_FAULTS
        if worker.fault:
            then = f"not replaced after {worker.faults} device faults in a row" if lost else "replaced"
            warnings.warn(f"{worker.device} failed in a worker, which is {then}: {worker.fault}", stacklevel=2)
        ended = worker.handle.wait()
        worker.handle.kill()  # what user code has started in it
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row > MAX_DEATHS_IN_A_ROW:
            raise RunFailed(f"{self.deaths_in_a_row} workers in a row died without a result: {ended}")
        fleet = worker.fleet
        for given in worker.given:
            if given is not fleet:  # computed but not fully written: not the cause, to be done again
                self.waiting.put_back(Fleet(given.kind, worker.left_of(given)))
        if fleet is not None:
            cause = worker.fault or worker.cause or ended
            left = Fleet(fleet.kind, worker.left_of(fleet))
            self._retry_or_fail(left, cause, worker.device, elsewhere=elsewhere and worker.fault != "")
        has_work = fleet is not None or worker.given or not self.waiting.is_over
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
            # Masks and measurements are done one after the other: the first one left is the cause.
            failed = left.stages if left.kind in ("train", "retrain") else left.stages[:1]
            rest = left.stages[len(failed) :]
            self.deaths = {key: each for key, each in self.deaths.items() if key not in {stage.key for stage in rest}}
            self.waiting.put_back(replace(left, stages=rest))
            for stage in failed:
                self.store.fail(stage.key, line, "", stage.coords)
                self.waiting.close(Outcome(stage.key, line))


def by_processes(
    fleets: Iterable[Fleet], spec: ContextSpec, claims: Claims, report: Report, pool: Pool, devices: Sequence[str]
) -> None:
    """Do the fleets in single-threaded processes; for the arguments see `Supervisor`."""
    Supervisor(fleets, spec, claims, report, pool, devices).run()
