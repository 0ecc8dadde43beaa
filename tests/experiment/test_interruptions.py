"""Ctrl-C, kill -9 and two commands at once: nothing finished is lost, and the numbers stay the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import write_toml

import regimes

Sweep = dict[str, Any]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def start(file: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("regimes")), "run", str(file), *more]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeding = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - ignored where tests run in background
    return subprocess.Popen(command, cwd=folder, **pipes, start_new_session=True, preexec_fn=heeding)


def records(run: Path) -> set[str]:
    return {path.stem for path in run.glob("records/*/*.json")}


def wait_for_records(run: Path, count: int, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while len(records(run)) < count:
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture
def longer(tiny: Sweep, tmp_path: Path) -> Path:
    """A sweep of some hundred stages, each short."""
    tiny["recipe"] = {"epochs": 50, "batch_size": 16}
    tiny["temperature"] = {"epochs": [5, 20, 50], "batch_size": [8, 32]}
    tiny["load"]["density"] = [0.1, 0.2, 0.4, 0.8]
    return write_toml(tmp_path / "longer.toml", tiny)


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(longer: Path, tmp_path: Path) -> None:
    process = start(longer, tmp_path, "--workers", "2", "--set", "retrain.epochs=2000")  # surely not over by then
    wait_for_records(tmp_path / "runs/tiny", 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "nothing finished is lost; resume with the same command: regimes run" in errors
    assert "Traceback" not in errors
    left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True, check=False)
    assert not left.stdout.strip()


def test_two_commands_on_one_folder_at_once(longer: Path, tmp_path: Path, cli: Cli) -> None:
    processes = [start(longer, tmp_path, "--workers", "1") for _ in range(2)]
    for process in processes:
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert "174 of 174 stages done" in out
    status = json.loads(cli("status", "runs/tiny", "--json").stdout)
    assert status["damaged"] == []
    assert all(set(counts) == {"ok"} for counts in status["stages"].values())
    assert not list((tmp_path / "runs/tiny").rglob("*.tmp"))


def test_killed_twenty_times_and_still_the_same_numbers(longer: Path, tmp_path: Path) -> None:
    """kill -9 at random instants, of the command or of a worker: no finished cell lost, no bad record, same numbers."""
    from regimes.experiment.store import Store

    seed = time.time_ns()
    print(f"instants drawn from seed {seed}")  # shown by pytest when the test fails
    random = np.random.default_rng(seed)
    run, store = tmp_path / "runs/tiny", Store(tmp_path / "runs/tiny")
    kills, hits = 0, 0
    while kills < 20:
        before = records(run)
        process = start(longer, tmp_path, "--workers", "2")
        if random.random() < 0.2:  # while it starts
            time.sleep(random.uniform(0.1, 3.0))
        else:  # at work
            while records(run) <= before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(random.uniform(0.0, 0.6))
        victims = [process.pid]
        if random.random() < 0.3:
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
            victims = [int(each) for each in children.stdout.split()][:1] + victims
        for victim in victims:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        kills += 1
        after = records(run)
        assert before <= after
        hits += before < after and process.returncode != 0
        for key in after:
            assert store.read(key) is not None  # raises where a record is torn
        if process.returncode == 0:  # finished before the blow: begin again, elsewhere
            run.rename(tmp_path / f"runs/finished-{kills}")
    assert hits >= 5, "too few of the kills met work in progress for this test to mean anything"
    final = subprocess.run([*process.args, "--workers", "2"], cwd=tmp_path, capture_output=True, text=True, check=True)  # type: ignore[misc]
    assert "stages done" in final.stdout
    calm = subprocess.run(
        [*process.args, "--workers", "0", "--out", "calm"], cwd=tmp_path, capture_output=True, check=True
    )  # type: ignore[misc]
    assert calm.returncode == 0
    xr.testing.assert_identical(regimes.open(run), regimes.open(tmp_path / "calm"))
    # The worker of a killed command may have been writing when the next one removed what was left: so once more.
    subprocess.run([*process.args, "--workers", "0"], cwd=tmp_path, capture_output=True, check=True)  # type: ignore[misc]
    assert not list(run.rglob("*.tmp"))
