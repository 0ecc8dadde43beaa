"""Writing in the background: nobody hears of a stage that is not on disk, and nothing is lost on the way."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from regimes.experiment.async_store import MAX_QUEUED, AsyncStore
from regimes.experiment.stages.stage import Outcome
from regimes.experiment.store import Store

RECORD: dict[str, Any] = {"kind": "retrain", "status": "ok", "at": {"density": 0.1}, "values": {}}


def test_a_stage_is_on_disk_before_anybody_hears_of_it(tmp_path: Path) -> None:
    there: list[bool] = []
    writer = AsyncStore(tmp_path, lambda outcome: there.append(Store(tmp_path).read(outcome.key) is not None))
    for number in range(3 * MAX_QUEUED):
        key = f"{number:020x}"
        writer.write(key, RECORD, {"w": torch.full((50,), float(number))})
        writer.report(Outcome(key))
    writer.flush()
    assert there == [True] * (3 * MAX_QUEUED)
    assert torch.equal(Store(tmp_path).weights(f"{7:020x}")["w"], torch.full((50,), 7.0))


def test_training_goes_on_while_a_slow_disk_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    write = Store.write

    def slow(self: Store, *args: Any) -> None:
        assert free.wait(timeout=30)
        write(self, *args)

    monkeypatch.setattr(Store, "write", slow)
    heard: list[str] = []
    writer = AsyncStore(tmp_path, lambda outcome: heard.append(outcome.key))
    writer.write("a" * 20, RECORD)
    writer.report(Outcome("a" * 20))
    assert heard == []  # and yet we are here
    free.set()
    writer.flush()
    assert heard == ["a" * 20]


def outcomes_of(folder: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> list[Any]:
    """What is heard of three stages, a, b and c, of which the second cannot be written."""
    write = Store.write

    def failing(self: Store, key: str, *args: Any) -> None:
        if key.startswith("b"):
            raise error
        write(self, key, *args)

    monkeypatch.setattr(Store, "write", failing)
    heard: list[Any] = []
    writer = AsyncStore(folder, heard.append)
    for key in ("a" * 20, "b" * 20, "c" * 20):
        writer.write(key, RECORD)
        writer.report(Outcome(key))
    writer.flush()
    return heard


def test_a_write_that_fails_makes_a_failed_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = outcomes_of(tmp_path, monkeypatch, OSError("File name too long"))
    assert [outcome.error for outcome in heard] == [None, "OSError: File name too long", None]
    failure = Store(tmp_path).failure("b" * 20)
    assert failure is not None
    assert failure["error"] == "OSError: File name too long"
    assert failure["at"] == {"density": 0.1}


def test_after_a_full_disk_nothing_more_is_written_or_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))
    done, fault = outcomes_of(tmp_path, monkeypatch, full)
    assert done == Outcome("a" * 20)
    assert str(fault).startswith(f"{tmp_path}: No space left on device; what is finished is kept")
    assert Store(tmp_path).read("c" * 20) is None
    assert not list(tmp_path.glob("failures/*"))
