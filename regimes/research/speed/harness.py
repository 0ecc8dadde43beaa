"""Run the contenders of a comparison in separate processes, interleaved so that machine noise affects all equally."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regimes.errors import UserError
from regimes.experiment.worker_process import MALLOC_SETTINGS
from regimes.research.page import Say

Case = Mapping[str, Any]


@dataclass(frozen=True)
class BenchOptions:
    """Options of a benchmark; each uses those it has a need for.

    Attributes:
        device: "cpu", "cuda", "cuda:1", ...
        rounds: number of interleaved runs of each contender.
        images: folder of train/CLASS/*.jpg and test/CLASS/*.jpg; "": digits.
        count: images for PreResNet-20; 0: the benchmark's own number.
    """

    device: str = "cpu"
    rounds: int = 3
    images: str = ""
    count: int = 0


@dataclass(frozen=True)
class Contender:
    """One implementation of the work that is compared.

    Attributes:
        name: name in the table.
        work: import path of ``(case) -> {"seconds": s, "units": n, ...}``, called in a separate process; further values
            are checks, on which all contenders have to agree.
        threads: number of torch threads; 0: torch's default.
        lean: whether the process keeps freed memory as the package's workers do.
        options: options added to the case.
    """

    name: str
    work: str
    threads: int = 1
    lean: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Timing:
    """Results of a contender, round by round.

    Attributes:
        contender: the contender.
        rates: units per second.
        checks: the other numbers it returned.
        absent: reason why it was left out; "" otherwise.
    """

    contender: Contender
    rates: list[float] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    absent: str = ""

    @property
    def rate(self) -> float:
        """Median units per second."""
        return statistics.median(self.rates)

    def check(self, name: str) -> float:
        """Return the mean of a check over the rounds; NaN if the contender does not report it."""
        found = self._finite(name)
        return statistics.fmean(found) if found else math.nan

    def spread(self, name: str) -> float:
        """Return the standard deviation of a check over the rounds; NaN for fewer than two rounds."""
        found = self._finite(name)
        return statistics.stdev(found) if len(found) > 1 else math.nan

    def _finite(self, name: str) -> list[float]:
        return [float(each[name]) for each in self.checks if each.get(name) is not None and math.isfinite(each[name])]

    def speedup_of(self, ours: Timing) -> tuple[float, float, float]:
        """Return how many times as fast ``ours`` is: median, minimum and maximum over the rounds."""
        ratios = sorted(mine / theirs for mine, theirs in zip(ours.rates, self.rates, strict=True))
        return statistics.median(ratios), ratios[0], ratios[-1]


def run_contenders(contenders: Sequence[Contender], case: Case, rounds: int, say: Say) -> list[Timing]:
    """Run all contenders in turn, ``rounds`` times each.

    A contender that fails or whose library is not installed is left out with a message.

    Raises:
        UserError: the first contender failed.
    """
    timings = [Timing(contender) for contender in contenders]
    for number in range(rounds):
        for timing in timings:
            if timing.absent:
                continue
            found = _run(timing.contender, {**case, **timing.contender.options, "round": number})
            if "absent" in found:
                timing.absent = found["absent"]
                if timing is timings[0]:
                    raise UserError(f"benchmark contender '{timing.contender.name}' failed: {timing.absent}")
                say(f"  {timing.contender.name}: left out: {timing.absent}")
                continue
            timing.rates.append(found["units"] / found["seconds"])
            timing.checks.append({name: each for name, each in found.items() if name not in ("seconds", "units")})
            say(f"  round {number + 1} of {rounds}  {timing.contender.name}: {found['seconds']:.1f} s")
    return [timing for timing in timings if not timing.absent]


def _run(contender: Contender, case: Case) -> dict[str, Any]:
    threads = (
        {name: str(contender.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if contender.threads else {}
    )
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    environment = {**(MALLOC_SETTINGS if contender.lean else {}), **inherited, **threads}
    process = subprocess.run(
        [sys.executable, "-m", "regimes.research.speed.run_contender", contender.work],
        input=json.dumps(dict(case)),
        capture_output=True,
        text=True,
        env=environment,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return {"absent": lines[-1]}
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found
