"""Arms of a comparison, each in a process of its own, taken in turn so that a noisy machine is noisy to all alike."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regimes.errors import UserError
from regimes.experiment.executors import KEEP_MEMORY

Say = Callable[[str], None]
Case = Mapping[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way of doing the same work.

    Attributes:
        name: as it stands in the table.
        work: import path of ``(case) -> {"seconds": s, "units": n, ...}``, called in a process of its own; what else it
            returns are checks, numbers that arms have to agree in.
        threads: torch's threads in that process; 0: as torch comes.
        lean: whether the process keeps its memory as the engine's workers do.
        options: added to the case.
    """

    name: str
    work: str
    threads: int = 1
    lean: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Timing:
    """What an arm took, round by round.

    Attributes:
        rates: units a second.
        checks: the other numbers it returned.
    """

    arm: Contender
    rates: list[float] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    absent: str = ""

    @property
    def rate(self) -> float:
        """Median units a second."""
        return statistics.median(self.rates)

    def check(self, name: str) -> float:
        """Mean of a check over the rounds; NaN where the arm does not give it."""
        found = self._finite(name)
        return statistics.fmean(found) if found else math.nan

    def spread(self, name: str) -> float:
        """Standard deviation of a check over the rounds; NaN of fewer than two."""
        found = self._finite(name)
        return statistics.stdev(found) if len(found) > 1 else math.nan

    def _finite(self, name: str) -> list[float]:
        return [float(each[name]) for each in self.checks if each.get(name) is not None and math.isfinite(each[name])]

    def slower(self, ours: Timing) -> tuple[float, float, float]:
        """How many times as fast ``ours`` is: median, least and greatest of the rounds."""
        ratios = sorted(mine / theirs for mine, theirs in zip(ours.rates, self.rates, strict=True))
        return statistics.median(ratios), ratios[0], ratios[-1]


def run_contenders(arms: Sequence[Contender], case: Case, rounds: int, say: Say) -> list[Timing]:
    """Run every arm ``rounds`` times in turn.

    An arm whose library is not installed, or that fails, is left out, and said so.

    Raises:
        UserError: the first arm, ours, failed.
    """
    timings = [Timing(arm) for arm in arms]
    for number in range(rounds):
        for timing in timings:
            if timing.absent:
                continue
            found = _run(timing.arm, {**case, **timing.arm.options, "round": number})
            if "absent" in found:
                timing.absent = found["absent"]
                if timing is timings[0]:
                    raise UserError(f"bench arm '{timing.arm.name}': {timing.absent}")
                say(f"  {timing.arm.name}: left out: {timing.absent}")
                continue
            timing.rates.append(found["units"] / found["seconds"])
            timing.checks.append({name: each for name, each in found.items() if name not in ("seconds", "units")})
            say(f"  round {number + 1} of {rounds}  {timing.arm.name}: {found['seconds']:.1f} s")
    return [timing for timing in timings if not timing.absent]


def _run(arm: Contender, case: Case) -> dict[str, Any]:
    threads = {name: str(arm.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if arm.threads else {}
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    environment = {**(KEEP_MEMORY if arm.lean else {}), **inherited, **threads}
    process = subprocess.run(
        [sys.executable, "-m", "regimes.research.speed.run_contender", arm.work],
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
