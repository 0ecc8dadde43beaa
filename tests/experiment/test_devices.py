"""Devices as typed: one normalised form or one line; workers get one each in turn and share its memory only with those
on the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import done
from torch import nn

from regimes import UserError
from regimes.config.sweep_file import resolve_sweep
from regimes.experiment import engine_selection, executors, memory, numerics
from regimes.experiment import run as running
from regimes.experiment.devices import device_of, devices_of
from regimes.experiment.environment import default_workers
from regimes.experiment.run import Result, prepare
from regimes.experiment.store import Store
from regimes.hpo import worker_pool
from regimes.hpo.worker_pool import WorkerConfig, run_workers
from regimes.models.mlp import MLP

NAMES = ["H100", "H100", "A100"]


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three CUDA devices, two of one model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(NAMES))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAMES[torch.device(device).index])


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("typed", "devices"),
    [
        ("cpu", ["cpu"]),
        (" CPU ", ["cpu"]),
        ("cuda", ["cuda:0"]),
        ("CUDA:1", ["cuda:1"]),
        ("cuda:2", ["cuda:2"]),
        ("cuda,cuda:1", ["cuda:0", "cuda:1"]),
        (" cuda:1 , cuda:00 ", ["cuda:1", "cuda:0"]),
        (torch.device("cuda", 1), ["cuda:1"]),
    ],
)
def test_names_have_one_form(typed: str, devices: list[str]) -> None:
    assert list(devices_of(typed)) == devices
    assert [str(torch.device(each)) for each in devices] == devices


ALLOWED = "; allowed here: cpu, cuda:0, cuda:1, cuda:2, or several for the workers, cuda:0,cuda:1"


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("", f"--device : '' is not a CPU or CUDA device{ALLOWED}"),
        ("cuda:x", f"--device cuda:x: 'cuda:x' is not a CPU or CUDA device{ALLOWED}"),
        ("cuda:-1", f"--device cuda:-1: 'cuda:-1' is not a CPU or CUDA device{ALLOWED}"),
        ("cuda:0,", f"--device cuda:0,: '' is not a CPU or CUDA device{ALLOWED}"),
        ("xpu:0", f"--device xpu:0: 'xpu:0' is not a CPU or CUDA device{ALLOWED}"),
        ("cuda:3", f"--device cuda:3: no device cuda:3{ALLOWED}"),
        ("mps", f"--device mps: sums are in float64, which MPS does not have{ALLOWED}"),
        (
            "cuda,cuda:0",
            "--device cuda,cuda:0: names cuda:0 twice; several workers share a device with --workers N",
        ),
        (
            "cuda:0,cuda:2",
            "--device cuda:0,cuda:2: different processors, on which the bits of a result depend: cuda:0 (H100), "
            "cuda:2 (A100); allowed: CUDA devices of one model",
        ),
    ],
)
def test_other_names_are_refused_with_what_is_allowed(typed: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        devices_of(typed)
    assert error.value.lines == (line,)


@pytest.mark.usefixtures("three_gpus")
def test_a_cpu_and_a_gpu_are_different_processors() -> None:
    with pytest.raises(UserError, match=r"different processors.*cpu \(.*\), cuda:0 \(H100\)"):
        devices_of("cpu,cuda:0")


@pytest.mark.usefixtures("three_gpus")
def test_one_device_where_one_is_used() -> None:
    assert device_of("cuda") == "cuda:0"
    with pytest.raises(UserError, match="--device cuda:1,cuda:0: one device is allowed here"):
        device_of("cuda:1,cuda:0")


def test_the_default_is_a_worker_per_gpu_or_core() -> None:
    assert default_workers(("cuda:0", "cuda:1")) == 2
    assert default_workers(("cuda:1",)) == 1
    assert default_workers(("cpu",)) == default_workers() >= 1


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU under two names."""
    monkeypatch.setattr(running, "devices_of", lambda names: ("cpu:0", "cpu:1"))
    monkeypatch.setattr(numerics, "processor_of", lambda device: "two")


@pytest.mark.usefixtures("two_devices")
def test_workers_get_a_device_in_turn_and_a_new_worker_that_of_the_dead_one(
    tiny: dict[str, Any], run_tiny: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = done(Store(run_tiny(tiny, "alone", engine="eager").folder))
    started: list[str] = []
    killed: list[str] = []
    replacing: list[tuple[str, list[str]]] = []
    handle, spawn, replace_dead = (
        getattr(executors.Supervisor, name) for name in ("_handle", "_spawn", "_replace_dead")
    )

    def handle_and_kill(self: executors.Supervisor, worker: Any, event: Any) -> None:
        if len(killed) < 3 and worker.fleet is not None and worker.handle.process.poll() is None:
            killed.append(worker.device)
            worker.handle.process.kill()
        handle(self, worker, event)

    def noting_spawn(self: executors.Supervisor, device: str, *rest: Any) -> Any:
        started.append(device)
        return spawn(self, device, *rest)

    def noting_replace(self: executors.Supervisor, worker: Any) -> None:
        before = len(started)
        replace_dead(self, worker)
        replacing.append((worker.device, started[before:]))

    monkeypatch.setattr(executors.Supervisor, "_handle", handle_and_kill)
    monkeypatch.setattr(executors.Supervisor, "_spawn", noting_spawn)
    monkeypatch.setattr(executors.Supervisor, "_replace_dead", noting_replace)
    result = run_tiny(tiny, "together", engine="eager", workers=3)
    assert len(killed) == 3
    assert started[:3] == ["cpu:0", "cpu:1", "cpu:0"]
    assert len(replacing) == 3
    assert all(new in ([device], []) for device, new in replacing)  # [] if it had become idle: not replaced
    assert done(Store(result.folder)) == expected


def faulty_on_the_first(input_shape: tuple[int, ...], classes: int) -> MLP:
    """A network that meets a device fault in every worker on cpu:0."""
    model = MLP(input_shape, classes, [12])

    def hook(module: nn.Module, inputs: Any) -> None:
        if os.environ.get("DEVICE_OF_TEST") == "cpu:0":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model.register_forward_pre_hook(hook)
    return model


@pytest.mark.usefixtures("two_devices")
def test_a_lost_device_is_left_and_no_stage_fails_by_it(
    tiny: dict[str, Any], run_tiny: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["model"] = {"name": "test_devices:faulty_on_the_first"}
    started: list[str] = []
    spawn = executors.Supervisor._spawn

    def telling_spawn(self: executors.Supervisor, device: str, *rest: Any) -> Any:
        started.append(device)
        monkeypatch.setenv("DEVICE_OF_TEST", device)
        worker = spawn(self, device, *rest)
        monkeypatch.delenv("DEVICE_OF_TEST")
        return worker

    monkeypatch.setattr(executors.Supervisor, "_spawn", telling_spawn)
    with pytest.warns(
        UserWarning, match="cpu:0 failed in a worker, which is not replaced after 2 device faults in a row"
    ):
        result = run_tiny(tiny, engine="eager", workers=2)
    assert started == ["cpu:0", "cpu:1", "cpu:0"]
    assert not result.progress.todo
    assert not result.progress.failed


@pytest.mark.usefixtures("two_devices")
def test_workers_share_the_memory_of_their_own_device(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[int] = []
    monkeypatch.setattr(
        engine_selection, "networks_that_fit", lambda context, recipe, sharing: shares.append(sharing) or 64
    )
    for workers, most in ((1, 1), (2, 1), (3, 2), (4, 2)):
        found = prepare(resolve_sweep(tiny), tmp_path / "none", "both", workers=workers)
        assert set(shares) == {most}
        shares.clear()
        assert found.spec.device == "cpu:0"  # of the process itself
        assert found.devices == ("cpu:0", "cpu:1")


@pytest.mark.usefixtures("two_devices")
def test_fleets_fit_into_the_device_with_the_least_free_memory(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(memory, "free_bytes", lambda device: asked.append(str(device)) or 10**12 * (device.index == 0))
    with pytest.warns(UserWarning, match="instead of 32 networks are trained at once"):
        found = prepare(resolve_sweep(tiny), tmp_path / "none", "both", engine="graphed", lanes=32)
    assert set(asked) == {"cpu:0", "cpu:1"}
    assert found.lanes == {"train": 1, "retrain": 1}


def test_workers_of_a_search_keep_their_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[str, int]] = []

    class Process:
        """The second worker dies once."""

        def __init__(self, target: object, args: tuple[Any, ...]) -> None:
            _, _, device, number, *_ = args
            started.append((device, number))
            self.exitcode = 1 if len(started) == 2 else 0

        def start(self) -> None: ...
        def join(self) -> None: ...
        def is_alive(self) -> bool:
            return False

    class Queue:
        def empty(self) -> bool:
            return True

    class Context:
        def __init__(self, way: str) -> None:
            self.Process, self.SimpleQueue = Process, Queue

    monkeypatch.setattr(worker_pool.multiprocessing, "get_context", Context)
    monkeypatch.setattr(worker_pool, "POLL_SECONDS", 0.0)
    monkeypatch.setattr("regimes.hpo.requeue.requeue_dead_trials", lambda study: [])
    config = WorkerConfig(tmp_path, "", ("cuda:0", "cuda:1"), 1, 0.0)
    run_workers(config, None, [], 3)  # type: ignore[arg-type]
    assert started == [("cuda:0", 0), ("cuda:1", 1), ("cuda:0", 2), ("cuda:1", 4)]
