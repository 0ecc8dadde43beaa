"""``python -m regimes.research gpu``: everything worth measuring on a GPU, part by part within a time limit.

Each part is some commands of this package, each a process of its own. Their output is written to ``PART.log`` and their
results below the folder as they come, and a line is added to ``parts.jsonl``. A part that is done is not done again, so
the command can be repeated with the same folder until no part is left.
"""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from regimes.errors import UserError
from regimes.research.page import Say

PARTS_FILE = "parts.jsonl"
LEAST_SECONDS = 10.0  # a part is not started with less time left
DIFFERENT = 1  # exit code of a part whose files should be equal and are not
SWEEP_IMAGES = "data/cifar10-jpeg"  # of the sweeps, unless told otherwise
FEW_CELLS = ("temperature.epochs=[18, 40]", "load.density=[0.12, 0.4]")


@dataclass(frozen=True)
class GpuPart:
    """One measurement.

    Attributes:
        name: its name.
        about: what it measures.
        seconds: its time limit.
        commands: the arguments of Python, one list per command.
        images: whether it needs the images of CIFAR-10.
        equal: two files that have to be equal in the end; None: none.
    """

    name: str
    about: str
    seconds: float
    commands: Sequence[Sequence[str]]
    images: bool = False
    equal: tuple[Path, Path] | None = None


def parts(out: Path, device: str, count: int, images: str) -> list[GpuPart]:
    """Return the parts, by worth; for the arguments see `measure_gpu`."""
    folder = ["--images", images] if images else []
    where = ["--set", f"data.root={images}"] if images else []

    def bench(name: str, rounds: int, *more: str) -> list[str]:
        words = ["-m", "regimes.research", "bench", name, "--device", device, "--rounds", str(rounds)]
        return [*words, *(["--count", str(count)] if count else []), *more, "--out", str(out)]

    def typed(command: str, *words: str, to: str) -> list[str]:
        return ["-m", "regimes", command, *words, "--out", str(out / to)]

    def sweep(name: str, *words: str, to: str) -> list[str]:
        precision = ["--device", device, "--precision", "bfloat16", "--retry-failed"]
        return typed("run", f"sweeps/{name}.toml", *where, *words, *precision, to=to)

    def with_workers(number: int, to: str) -> list[list[str]]:
        few = [word for change in FEW_CELLS for word in ("--set", change)]
        started = sweep("cifar10-cpu", "--engine", "graphed", "--workers", str(number), *few, to=to)
        return [started, typed("export", str(out / to), "--to", "csv", to=f"{to}.csv")]

    both = [*with_workers(1, "one"), *with_workers(4, "four")]
    grid = [sweep("cifar10-gpu", to="grid-run"), typed("map", str(out / "grid-run"), to="grid")]
    discovery = typed("discover", "sweeps/cifar10-discover.toml", *where, "--device", device, to="discovery")
    files = out / "one.csv", out / "four.csv"
    return [
        GpuPart("check", "engines, measures and pruners compared with a CPU", 90, [bench("check", 1)]),
        GpuPart("steps", "time of a training step by engine, precision and lanes", 150, [bench("steps", 3)]),
        GpuPart("workers", "one sweep by one worker and by four: same bits?", 150, both, images=True, equal=files),
        GpuPart("engine", "training compared with the reference pipeline", 200, [bench("engine", 1, *folder)]),
        GpuPart("pair", "LMC and CKA compared with the reference pipeline", 90, [bench("pair", 2, *folder)]),
        GpuPart("hessian", "Hessian compared with PyHessian and curvlinops", 120, [bench("hessian", 2)]),
        GpuPart("grid", "the study's setting in a grid of 4 x 5, and its map", 600, grid, images=True),
        GpuPart("discovery", "a ResNet-56 loses units and blocks", 400, [discovery], images=True),
    ]


def measure_gpu(out: Path, device: str, minutes: float, only: Sequence[str], count: int, images: str, say: Say) -> int:
    """Do the parts that are not done yet until the time is up: those least often tried first, then by worth.

    Args:
        out: folder of the results.
        device: "cuda", "cuda:0", ...; "cpu" for a trial of the script.
        minutes: time limit.
        only: names of the parts to do; empty: all.
        count: images of the benchmarks with PreResNet-20; 0: as many as each benchmark says.
        images: folder of train/CLASS/*.jpg and test/CLASS/*.jpg; "": enlarged digits, and the sweeps' own folder.
        say: called with a line of progress.

    Returns:
        The number of parts that are not done.

    Raises:
        UserError: an unknown part, no sweep files here, or a folder that cannot be written.
    """
    every = parts(out, device, count, images)
    unknown = [name for name in only if name not in [part.name for part in every]]
    if unknown:
        raise UserError(f"--only {', '.join(unknown)}: allowed: {', '.join(part.name for part in every)}")
    if not Path("sweeps").is_dir():
        raise UserError("no folder sweeps/ here; run this command in the root of a clone of the repository")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    deadline = time.perf_counter() + 60 * minutes
    tried, wanted = Counter(name for name, _ in tries(out)), [part for part in every if not only or part.name in only]
    for part in sorted(wanted, key=lambda part: tried[part.name]):
        left = deadline - time.perf_counter()
        if part.name in done_parts(out):
            say(f"{part.name}: done before")
        elif part.images and not (Path(images or SWEEP_IMAGES) / "train").is_dir():
            say(f"{part.name}: not started, no images in {images or SWEEP_IMAGES}")
        elif left < LEAST_SECONDS:
            say(f"{part.name}: not started, the time is up")
        else:
            _do(part, out, min(part.seconds, left), say)
    return len({part.name for part in wanted} - done_parts(out))


def tries(out: Path) -> list[tuple[str, int | None]]:
    """Return (name, exit code) of every try of a part; None: stopped at its limit."""
    file, found = out / PARTS_FILE, []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # written only in part
            continue
        found.append((row["part"], row["code"]))
    return found


def done_parts(out: Path) -> set[str]:
    """Return the names of the parts that ended well."""
    return {name for name, code in tries(out) if code == 0}


def _do(part: GpuPart, out: Path, limit: float, say: Say) -> None:
    say(f"{part.name}: {part.about} (at most {limit:.0f} s)")
    started, code = time.perf_counter(), None
    with open(out / f"{part.name}.log", "w", encoding="utf-8") as log:
        for command in part.commands:
            code = _in_time([sys.executable, *command], log, limit - (time.perf_counter() - started))
            if code != 0:
                break
    if code == 0 and part.equal is not None and not filecmp.cmp(*part.equal, shallow=False):
        code = DIFFERENT
        say(f"{part.name}: {part.equal[0].name} and {part.equal[1].name} differ")
    seconds = time.perf_counter() - started
    with open(out / PARTS_FILE, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"part": part.name, "code": code, "seconds": round(seconds, 1)}) + "\n")
    endings = {0: "done", None: f"stopped at its limit, see {part.name}.log"}
    say(f"{part.name}: {endings.get(code, f'exit code {code}, see {part.name}.log')} ({seconds:.0f} s)")


def _in_time(command: Sequence[str], log: IO[str], seconds: float) -> int | None:
    """Run a command and return its exit code; when the time is up, kill it with its children and return None."""
    if seconds <= 0:
        return None
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also when this process is interrupted
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
