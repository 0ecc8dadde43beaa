"""``python -m regimes.research gpu``: everything worth measuring on a GPU, part by part within a time limit.

Each part is some commands of this package, each a process of its own. Their output is written to ``PART.log`` and their
results below the folder as they come, and a line is added to ``parts.jsonl``. A part that is done is not done again, so
the command can be repeated with the same folder until no part is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from regimes.errors import UserError
from regimes.research.page import Say

PARTS_FILE = "parts.jsonl"
LEAST_SECONDS = 10.0  # a part is not started with less time left
FEW_CELLS = ("temperature.epochs=[18, 40]", "load.density=[0.12, 0.4]")
SAME = """
import filecmp, sys
same = filecmp.cmp(*sys.argv[1:], shallow=False)
print("all values are bitwise equal" if same else "VALUES DIFFER")
sys.exit(not same)
"""


@dataclass(frozen=True)
class GpuPart:
    """One measurement.

    Attributes:
        name: its name.
        about: what it measures.
        seconds: its time limit.
        commands: the arguments of Python, one list per command.
    """

    name: str
    about: str
    seconds: float
    commands: Sequence[Sequence[str]]


def parts(out: Path, device: str, count: int, images: str) -> list[GpuPart]:
    """Return the parts, by worth; for the arguments see `measure_gpu`."""
    folder = ["--images", images] if images else []

    def bench(name: str, rounds: int, *more: str) -> list[str]:
        words = ["-m", "regimes.research", "bench", name, "--device", device, "--rounds", str(rounds)]
        return [*words, *(["--count", str(count)] if count else []), *more, "--out", str(out)]

    def regimes(command: str, *words: str, to: str) -> list[str]:
        return ["-m", "regimes", command, *words, "--out", str(out / to)]

    def run(sweep: str, *words: str, to: str) -> list[str]:
        return regimes("run", f"sweeps/{sweep}.toml", *words, "--device", device, "--precision", "bfloat16", to=to)

    def workers(number: int, to: str) -> list[list[str]]:
        few = [word for change in FEW_CELLS for word in ("--set", change)]
        started = run("cifar10-cpu", "--engine", "graphed", "--workers", str(number), *few, to=to)
        return [started, regimes("export", str(out / to), "--to", "csv", to=f"{to}.csv")]

    grid = [run("cifar10-gpu", to="grid-run"), regimes("map", str(out / "grid-run"), to="grid")]
    same = ["-c", SAME, str(out / "one.csv"), str(out / "four.csv")]
    discovery = regimes("discover", "sweeps/cifar10-discover.toml", "--device", device, to="discovery")
    return [
        GpuPart("check", "engines, measures and pruners compared with a CPU", 90, [bench("check", 1)]),
        GpuPart("steps", "time of a training step by engine, precision and lanes", 150, [bench("steps", 3)]),
        GpuPart("workers", "one sweep by one worker and by four", 150, [*workers(1, "one"), *workers(4, "four"), same]),
        GpuPart("engine", "training compared with the reference pipeline", 200, [bench("engine", 1, *folder)]),
        GpuPart("pair", "LMC and CKA compared with the reference pipeline", 90, [bench("pair", 2, *folder)]),
        GpuPart("hessian", "Hessian compared with PyHessian and curvlinops", 120, [bench("hessian", 2)]),
        GpuPart("grid", "the study's setting in a grid of 4 x 5, and its map", 600, grid),
        GpuPart("discovery", "a ResNet-56 loses units and blocks", 400, [discovery]),
    ]


def measure_gpu(out: Path, device: str, minutes: float, only: Sequence[str], count: int, images: str, say: Say) -> int:
    """Do the parts that are not done yet, in order, until the time is up.

    Args:
        out: folder of the results.
        device: "cuda", "cuda:0", ...; "cpu" for a trial of the script.
        minutes: time limit.
        only: names of the parts to do; empty: all.
        count: images of the benchmarks with PreResNet-20; 0: as many as each benchmark says.
        images: folder of train/CLASS/*.jpg and test/CLASS/*.jpg; "": enlarged digits.
        say: called with a line of progress.

    Returns:
        The number of parts that are not done.

    Raises:
        UserError: an unknown part, or a folder that cannot be written.
    """
    every = parts(out, device, count, images)
    unknown = [name for name in only if name not in [part.name for part in every]]
    if unknown:
        raise UserError(f"--only {', '.join(unknown)}: allowed: {', '.join(part.name for part in every)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    deadline = time.perf_counter() + 60 * minutes
    wanted = [part for part in every if not only or part.name in only]
    for part in wanted:
        left = deadline - time.perf_counter()
        if part.name in done_parts(out):
            say(f"{part.name}: done before")
        elif left < LEAST_SECONDS:
            say(f"{part.name}: not started, the time is up")
        else:
            _do(part, out, min(part.seconds, left), say)
    return len({part.name for part in wanted} - done_parts(out))


def done_parts(out: Path) -> set[str]:
    """Return the names of the parts that ended well."""
    file = out / PARTS_FILE
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {row["part"] for row in rows if row["code"] == 0}


def _do(part: GpuPart, out: Path, limit: float, say: Say) -> None:
    say(f"{part.name}: {part.about} (at most {limit:.0f} s)")
    started, code = time.perf_counter(), 0
    with open(out / f"{part.name}.log", "w", encoding="utf-8") as log:
        for command in part.commands:
            code = _in_time([sys.executable, *command], log, limit - (time.perf_counter() - started))
            if code:
                break
    seconds = time.perf_counter() - started
    with open(out / PARTS_FILE, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"part": part.name, "code": code, "seconds": round(seconds, 1)}) + "\n")
    endings = {0: "done", -signal.SIGKILL: f"stopped at its limit, see {part.name}.log"}
    say(f"{part.name}: {endings.get(code, f'exit code {code}, see {part.name}.log')} ({seconds:.0f} s)")


def _in_time(command: Sequence[str], log: IO[str], seconds: float) -> int:
    """Run a command, kill it with its children when the time is up, and return its exit code."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
