"""A disk that fills up, and workers that hang: one line, nothing finished is lost, and the same command goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import done, write_toml

from regimes.config.sweep_file import resolve_sweep
from regimes.errors import UserError
from regimes.experiment.atomic_files import write_atomic
from regimes.experiment.run import run
from regimes.experiment.store import Store
from regimes.faults import user_error_of

Sweep = dict[str, Any]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ROOM = "REGIMES_TEST_ROOM"  # environment variable: number of files that a process may write before its disk is full

MODULE = f"""
import errno, os, sys, time
from regimes.models.mlp import MLP

room = int(os.environ.get("{ROOM}", 10**9))
fsync = os.fsync

def full(handle):
    global room
    room -= 1
    if room < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(handle)

os.fsync = full

def mlp(input_shape, classes):
    return MLP(input_shape, classes, [12, 12], batch_norm=True)

def sleepy(input_shape, classes):
    model = mlp(input_shape, classes)
    if "regimes.experiment.worker" in sys.orig_argv and os.path.exists(os.environ["SLEEP"]):
        model.register_forward_pre_hook(lambda module, _: time.sleep(600) if module.training else None)
    return model
"""


@pytest.fixture
def toml(tiny: Sweep, tmp_path: Path) -> Path:
    (tmp_path / "own_full_disk.py").write_text(MODULE)
    return write_toml(tmp_path / "tiny.toml", tiny | {"model": {"name": "own_full_disk:mlp"}})


def test_the_error_names_the_file_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        write_atomic(tmp_path / "a", b"x" * 12345)
    assert not list(tmp_path.iterdir())
    assert str(user_error_of(raised.value)) == (
        f"{tmp_path / 'a'}: No space left on device, 12,345 bytes to write; what is finished is kept: make room, then "
        "run the same command again"
    )


@pytest.mark.parametrize("wrap", [RuntimeError, ValueError])
def test_it_is_found_in_the_errors_of_libraries(wrap: type[Exception]) -> None:
    error = wrap("cannot save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "No space left on device; what is finished is kept" in str(user_error_of(error))
    assert "disk is full; what is finished" in str(user_error_of(wrap("(sqlite3) database or disk is full [SQL: ...]")))
    assert user_error_of(wrap("no such thing")) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stops_in_one_line_and_the_same_command_goes_on(
    cli: Cli, toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    words = ("run", toml, "--engine", "eager", "--workers", workers, "--out")
    monkeypatch.setenv(ROOM, "9")
    stopped = cli(*words, "run")
    assert stopped.returncode == 2, stopped.stderr
    assert "Traceback" not in stopped.stderr
    last = stopped.stderr.strip().splitlines()[-1]
    assert "No space left on device" in last
    assert last.endswith("what is finished is kept: make room, then run the same command again")
    assert not list(tmp_path.glob("run/failures/*"))
    before = done(Store(tmp_path / "run"))
    monkeypatch.delenv(ROOM)
    assert cli(*words, "run").returncode == 0
    after = done(Store(tmp_path / "run"))
    assert {key: after[key] for key in before} == before
    assert cli(*words, "whole").returncode == 0
    assert after == done(Store(tmp_path / "whole"))


def test_a_worker_that_hangs_is_killed_and_its_work_tried_again(
    toml: Path, tiny: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    asleep = tmp_path / "asleep"
    monkeypatch.setenv("SLEEP", str(asleep))
    asleep.touch()
    sweep = resolve_sweep(tiny | {"model": {"name": "own_full_disk:sleepy"}, "temperature": {"epochs": [2]}})
    result = run(sweep, tmp_path / "run", workers=1, engine="eager", stage_timeout=1)
    assert set(result.progress.failed.values()) == {
        "the worker process died 3 times on this stage: no result within 1 s (--stage-timeout)"
    }
    asleep.unlink()
    result = run(sweep, tmp_path / "run", workers=1, retry_failed=True, stage_timeout=300)
    assert not result.progress.todo
    with pytest.raises(UserError, match="--stage-timeout: needs worker processes"):
        run(sweep, tmp_path / "run", workers=0, stage_timeout=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_ended_says_how_to_go_on(toml: Path, tmp_path: Path, number: int) -> None:
    command = [str(Path(sys.executable).with_name("regimes")), "run", str(toml), "--engine", "eager", "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "runs").glob("tiny/records/*/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "interrupted; nothing finished is lost; resume with the same command: regimes run" in said
    assert not list((tmp_path / "runs" / "tiny").glob("claims/*"))
