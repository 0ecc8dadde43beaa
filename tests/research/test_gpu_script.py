"""The script for a GPU: parts in order, within their time, done once; as typed under limits and mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from regimes.cli import app
from regimes.errors import UserError
from regimes.research import gpu
from regimes.research.__main__ import app as research_app
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
        GpuPart("hangs", "", 15, [["-c", "import time; print('begun', flush=True); time.sleep(600)"]]),
    ]
    monkeypatch.setattr(gpu, "parts", lambda *_: listed)
    return tmp_path


def test_parts(few: Path) -> None:
    said: list[str] = []
    out = few / "out"
    assert measure_gpu(out, "cpu", 5, [], 0, "", said.append) == 2
    rows = [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]
    assert [(row["part"], row["code"]) for row in rows] == [("works", 0), ("fails", 3), ("hangs", None)]
    assert (out / "hangs.log").read_text() == "begun\n"
    assert not (few / "b").exists()
    assert measure_gpu(out, "cpu", 5, ["works", "fails"], 0, "", said.append) == 1  # only the failed part again
    assert (few / "a").read_text() == "x"
    assert "works: done before" in said


def test_least_tried_first_and_damaged_lines(few: Path) -> None:
    said: list[str] = []
    (few / "out").mkdir()
    lines = [json.dumps({"part": name, "code": 1, "seconds": 1}) for name in ("works", "works", "fails", "hangs")]
    (few / "out" / "parts.jsonl").write_text("\n".join([*lines, '{"part": "wor']) + "\n")
    measure_gpu(few / "out", "cpu", 5, ["works", "fails"], 0, "", said.append)
    assert [line.partition(":")[0] for line in said if "at most" in line] == ["fails", "works"]


def test_files_that_should_be_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "one", tmp_path / "two"
    for text, left in (("same", 0), ("other", 1)):
        files[0].write_text("same")
        files[1].write_text(text)
        listed = [GpuPart("compare", "", 60, [["-c", ""]], equal=files)]
        monkeypatch.setattr(gpu, "parts", lambda *_, listed=listed: listed)
        assert measure_gpu(tmp_path / text, "cpu", 5, [], 0, "", print) == left


def test_an_interruption_stops_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    monkeypatch.setattr(gpu, "parts", lambda *_: [GpuPart("long", "", 500, [["-c", code]])])
    wait = subprocess.Popen.wait

    def interrupted(self: Any, timeout: float | None = None) -> int:
        if timeout is None:
            return wait(self)
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_gpu(tmp_path / "out", "cpu", 5, [], 0, "", print)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_time_is_up(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1e9)
    assert measure_gpu(few / "out", "cpu", 5, [], 0, "", said.append) == 3
    assert said == [f"{name}: not started, the time is up" for name in ("works", "fails", "hangs")]


def test_unknown_part(few: Path) -> None:
    with pytest.raises(UserError, match="--only grid: allowed: works, fails, hangs"):
        measure_gpu(few / "out", "cpu", 5, ["grid"], 0, "", print)


def test_every_command_parses(tmp_path: Path) -> None:
    programs = {"regimes": app, "regimes.research": research_app}
    for part in parts(tmp_path, "cuda", 64, "images"):
        for module, program, *words in part.commands:
            assert module == "-m"
            main = typer.main.get_command(programs[program])
            command = main.get_command(None, words[0])  # type: ignore[attr-defined, arg-type]
            found = command.make_context(words[0], list(words[1:])).params
            assert found["out"].is_relative_to(tmp_path)
            assert found.get("name") in (None, *BENCHES)
            assert not str(found.get("file")).startswith("sweeps/") or Path(found["file"]).exists()


def test_as_typed(research: Typed, tmp_path: Path) -> None:
    missing = research("gpu", "--out", "out")
    assert missing.returncode == 2
    assert "no CUDA device" in missing.stderr
    wrong = research("gpu", "--out", "out", "--device", "cpu", "--only", "chek")
    assert wrong.returncode == 2
    assert "allowed: check, steps" in wrong.stderr
    elsewhere = research("gpu", "--out", "out", "--device", "cpu")
    assert elsewhere.returncode == 2
    assert "no folder sweeps/ here" in elsewhere.stderr
