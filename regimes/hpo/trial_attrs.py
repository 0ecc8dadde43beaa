"""What is noted on a trial, as plain JSON, so that any dashboard shows it and any later command reads it."""

from __future__ import annotations

import math
import time
from typing import Any

from optuna.trial import Trial

from regimes.hpo.fidelities import Ladder, Segment
from regimes.hpo.fidelity_trainer import FidelityResult

PREFIX = "regimes:"  # of every name


def row_of(ladder: Ladder, stretch: Segment, value: FidelityResult) -> dict[str, Any]:
    """A stretch as plain JSON; what is not finite is null."""
    rung = ladder.rungs[stretch.rung]
    numbers = {"loss": value.loss, "error": value.error, "calibrated": value.calibrated}
    return {
        "density": rung.density,
        "epoch": stretch.stop,
        "step": stretch.step,
        **{name: each if math.isfinite(each) else None for name, each in numbers.items()},
        "seconds": round(value.seconds, 4),
        "at": round(time.time(), 3),
        "paid": value.paid,
        **({"why": value.why} if value.why else {}),
    }


def note(trial: Trial, name: str, value: Any) -> None:
    """Note plain data on a trial."""
    trial.set_user_attr(f"{PREFIX}{name}", value)
