"""Workers on the machines of a Ray cluster, which share the run's folder.

Source: https://docs.ray.io, actors with streaming generators.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import platform
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from regimes.errors import UserError
from regimes.experiment.worker_process import MALLOC_SETTINGS, ONE_THREAD, READY, Heard

if TYPE_CHECKING:
    from regimes.experiment.context import ContextSpec
    from regimes.experiment.schedule import Fleet

CONNECT_SECONDS, END_SECONDS = 10.0, 5.0
INSTALL_COMMAND = "pip install 'regimes[ray]'"


@contextlib.contextmanager
def ray_cluster(address: str | None, workers: int | None, gpus: float) -> Iterator[int]:
    """Connect to a Ray cluster, or start one on this machine; yield the number of workers that it is to have.

    Args:
        address: address of the cluster, e.g. "auto" or "10.0.0.1:6379"; None: one of this machine alone.
        workers: number of workers; None: as many as the cluster has room for.
        gpus: GPUs of each worker, e.g. 0.25.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or it has no room for one worker.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        local: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
        variables, handler = {**MALLOC_SETTINGS, **ONE_THREAD}, signal.getsignal(signal.SIGTERM)
        try:
            _connect(address)  # Ray would try for minutes
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": variables},
                **local,
            )
        except (OSError, ValueError, RuntimeError) as error:
            line = str(error).splitlines()[0]
            where = (
                f"--address {address}: no Ray cluster there" if address else "--executor ray: no cluster can be started"
            )
            raise UserError(f"{where} ({line}); start one with: ray start") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    try:
        total = ray.cluster_resources()
        room = total.get("CPU", 0.0)
        if gpus:
            room = min(room, total.get("GPU", 0.0) / gpus)
        if room < 1:
            has = ", ".join(f"{total.get(name, 0.0):g} {name}s" for name in ("CPU", "GPU"))
            raise UserError(f"--executor ray: a worker needs 1 CPU and {gpus:g} GPUs, but the cluster has {has}")
        yield workers or math.floor(room)
    finally:
        if mine:
            ray.shutdown()


def _connect(address: str | None) -> None:
    """Connect to HOST:PORT and close the connection again."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError(f"--executor ray: Ray is not installed; install it with: {INSTALL_COMMAND}") from error


class RayWorker:
    """Actor of a Ray cluster that does fleets; see `regimes.experiment.worker_process.WorkerHandle`.

    Args:
        spec: description of its run context; its folder must be the same on all machines.
        heard: function that receives its events.
        gpus: its GPUs; with a fraction several workers share one.
    """

    def __init__(self, spec: ContextSpec, heard: Heard, gpus: float = 0.0) -> None:
        ray = _ray()
        spec = replace(spec, folder=os.path.abspath(spec.folder))
        if gpus:
            spec = replace(spec, device="cuda:0", devices=())  # Ray shows each worker its own devices only
        self.heard, self.ended = heard, ""
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=2)(_Actor)
        self.actor = actor.remote(sys.path, os.getcwd(), spec)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def send(self, fleet: Fleet) -> None:
        """Give it a fleet."""
        self.actor.put.remote(fleet)

    def kill(self) -> None:
        """Kill it."""
        ray = _ray()
        with contextlib.suppress(Exception):  # the cluster has gone
            ray.kill(self.actor)

    def wait(self) -> str:
        """Wait for its end and return how it ended."""
        self.thread.join(END_SECONDS)
        return self.ended or "stopped"

    def _listen(self) -> None:
        ray = _ray()
        try:
            for event in self.actor.events.options(num_returns="streaming").remote():
                self.heard(ray.get(event))
        except Exception as error:  # its machine has gone, or user code has ended it
            self.ended = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        self.heard(EOFError())


class _Actor:
    """The side of a worker that runs on its machine."""

    def __init__(self, path: list[str], folder: str, spec: ContextSpec) -> None:
        sys.path += [entry for entry in path if entry not in sys.path]  # the user's modules
        with contextlib.suppress(OSError):  # data sets may be named relative to it
            os.chdir(folder)
        self.inbox: queue.SimpleQueue[Fleet] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(spec,), daemon=True).start()

    def put(self, fleet: Fleet) -> None:
        """Take a fleet."""
        self.inbox.put(fleet)

    def events(self) -> Iterator[Any]:
        """Yield events as they happen.

        Raises:
            Exception: that which has ended the work.
        """
        yield READY
        while (event := self.outbox.get()) is not None:
            if isinstance(event, BaseException) and not isinstance(event, UserError):
                raise event
            yield event

    def _serve(self, spec: ContextSpec) -> None:
        from regimes.experiment.numerics import numerics_of
        from regimes.experiment.worker import serve

        try:
            began = spec.numerics
            here = numerics_of(spec.device, began.dense, began.engine, began.precision)
            if here != began:
                raise UserError(f"{platform.node()}: results would be by {here}, but the run is by {began}")
            serve(spec, self.inbox.get, self.outbox.put)
            self.outbox.put(None)
        except BaseException as error:
            self.outbox.put(error)
