"""Benchmark ``sharing``: one, two and four commands on one run folder, and workers of a Ray cluster."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from regimes.plots.text_table import TextTable
from regimes.research.page import Page, Say, benchmark_page
from regimes.research.speed.harness import BenchOptions, Case, Contender, Timing, run_contenders

SWEEP = """
name = "sharing"
dense_seeds = 2
retrain_seeds = 3
[data]
name = "digits"
[model]
name = "preresnet"
depth = 14
width = 8
[recipe]
epochs = 10
[temperature]
batch_size = [64, 128]
[load]
density = [0.05, 0.1, 0.2]
[measure]
metrics = ["error", "lmc", "cka"]
"""
WAYS: dict[str, dict[str, Any]] = {
    "one command, one worker": {"commands": 1, "words": ["--workers", "1"]},
    "two commands, one worker each": {"commands": 2, "words": ["--workers", "1"]},
    "four commands, one worker each": {"commands": 4, "words": ["--workers", "1"]},
    "one command, two workers": {"commands": 1, "words": ["--workers", "2"]},
    "one command, two workers of Ray": {"commands": 1, "words": ["--workers", "2", "--executor", "ray"]},
}


def bench(options: BenchOptions, say: Say) -> Page:
    """Run the comparison."""
    contenders = [Contender(name, f"{__name__}:share", options=way) for name, way in WAYS.items()]
    timings = run_contenders(contenders, {"device": options.device}, options.rounds, say)
    return benchmark_page("sharing", [_table(timings)])


def share(case: Case) -> dict[str, Any]:
    """Run a sweep by several commands started at once; count the stages that each has done."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "sweep.toml"), Path(folder, "run")
        file.write_text(SWEEP)
        words = ["run", str(file), "--out", str(out), "--engine", "eager", "--device", case["device"], *case["words"]]
        started = time.perf_counter()
        processes = [
            subprocess.Popen([sys.executable, "-m", "regimes", *words], stdout=subprocess.DEVNULL)
            for _ in range(case["commands"])
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"exit codes {codes}")
        seconds = time.perf_counter() - started
        done = [json.loads(line)["stages"] for line in (out / "log.jsonl").read_text().splitlines()]
        return {"seconds": seconds, "units": 1, "done": sum(done), "records": len(list(out.glob("records/*/*.json")))}


def _table(timings: list[Timing]) -> TextTable:
    rows = [["way", "wall time, s", "of one worker's", "stages done", "stages of the sweep"]]
    facts = {}
    for timing in timings:
        seconds = [1 / rate for rate in timing.rates]
        shares = sorted(mine * theirs for mine, theirs in zip(seconds, timings[0].rates, strict=True))
        row = [timing.contender.name, f"{statistics.median(seconds):.0f}"]
        row.append(f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})")
        rows.append([*row, f"{timing.check('done'):g}", f"{timing.check('records'):g}"])
        facts[timing.contender.name] = {"seconds": seconds, "checks": timing.checks}
    notes = [
        "commands started at once on an empty folder; wall time until the last has ended; engine eager",
        "stages done: by all commands together; more than the sweep has would be done twice",
    ]
    return TextTable("PreResNet-14 on handwritten digits, 12 cells, three copies", rows, notes, facts)
