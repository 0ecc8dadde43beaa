"""User attributes of a trial: plain JSON that dashboards show and later commands read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from regimes.hpo.fidelities import Ladder, Segment
from regimes.hpo.fidelity_trainer import FidelityResult

PREFIX = "regimes:"  # of every attribute name


def row_of(ladder: Ladder, segment: Segment, value: FidelityResult) -> dict[str, Any]:
    """Return a segment's result as plain JSON; non-finite numbers become null."""
    rung = ladder.rungs[segment.rung]
    numbers = {"loss": value.loss, "error": value.error, "calibrated": value.calibrated}
    return {
        "density": rung.density,
        **({"fidelity": rung.name} if rung.name != f"{rung.density:g}" else {}),
        "epoch": segment.stop,
        "step": segment.step,
        **{name: each if math.isfinite(each) else None for name, each in numbers.items()},
        "seconds": round(value.seconds, 4),
        "at": round(time.time(), 3),
        "paid": value.paid,
        **({"why": value.why} if value.why else {}),
    }


def fidelity_of(row: Mapping[str, Any]) -> str:
    """Return the name of the fidelity of a segment's row, as in `Fidelity.name`."""
    return str(row.get("fidelity", f"{row['density']:g}"))


def note(trial: Trial, name: str, value: Any) -> None:
    """Set a user attribute, prefixed with `PREFIX`, on a trial."""
    trial.set_user_attr(f"{PREFIX}{name}", value)
