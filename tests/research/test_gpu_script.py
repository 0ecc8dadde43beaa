"""The script for a GPU: parts in order, within their time, done once; as typed under limits and mistakes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from regimes.errors import UserError
from regimes.research import gpu
from regimes.research.gpu import GpuPart, measure_gpu, parts
from regimes.research.speed import BENCHES

Typed = Callable[..., subprocess.CompletedProcess[str]]
APPEND = "import sys, pathlib; f = pathlib.Path(sys.argv[1]); f.write_text((f.read_text() if f.exists() else '') + 'x')"


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three parts: one works, one fails in its first of two commands, one never ends."""
    touched = [str(tmp_path / name) for name in "ab"]
    listed = [
        GpuPart("works", "", 60, [["-c", APPEND, touched[0]]]),
        GpuPart("fails", "", 60, [["-c", "raise SystemExit(3)"], ["-c", APPEND, touched[1]]]),
        GpuPart("hangs", "", 2, [["-c", "import time; print('begun', flush=True); time.sleep(600)"]]),
    ]
    monkeypatch.setattr(gpu, "parts", lambda *_: listed)
    return tmp_path


def test_parts(few: Path) -> None:
    said: list[str] = []
    out = few / "out"
    assert measure_gpu(out, "cpu", 5, [], 0, "", said.append) == 2
    rows = [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]
    assert [(row["part"], row["code"]) for row in rows] == [("works", 0), ("fails", 3), ("hangs", -9)]
    assert (out / "hangs.log").read_text() == "begun\n"
    assert not (few / "b").exists()
    assert measure_gpu(out, "cpu", 5, ["works", "fails"], 0, "", said.append) == 1  # only the failed part again
    assert (few / "a").read_text() == "x"
    assert "works: done before" in said


def test_time_is_up(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1e9)
    assert measure_gpu(few / "out", "cpu", 5, [], 0, "", said.append) == 3
    assert said == [f"{name}: not started, the time is up" for name in ("works", "fails", "hangs")]


def test_unknown_part(few: Path) -> None:
    with pytest.raises(UserError, match="--only grid: allowed: works, fails, hangs"):
        measure_gpu(few / "out", "cpu", 5, ["grid"], 0, "", print)


def test_every_command_is_known(tmp_path: Path) -> None:
    for part in parts(tmp_path, "cuda", 64, "images"):
        for command in part.commands:
            if command[:2] == ["-m", "regimes.research"]:
                assert command[2] == "bench"
                assert command[3] in BENCHES
            for word in command:
                assert not word.startswith("sweeps/") or Path(word).exists(), word


def test_as_typed(research: Typed, tmp_path: Path) -> None:
    missing = research("gpu", "--out", "out")
    assert missing.returncode == 2
    assert "no CUDA device" in missing.stderr
    wrong = research("gpu", "--out", "out", "--device", "cpu", "--only", "chek")
    assert wrong.returncode == 2
    assert "allowed: check, steps" in wrong.stderr
