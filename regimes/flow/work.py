"""Do one fleet: the only place that knows which function does which stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regimes.flow.discover import discover
from regimes.flow.files import Damaged
from regimes.flow.given import take
from regimes.flow.lab import Lab
from regimes.flow.measure import measure
from regimes.flow.plan import Fleet
from regimes.flow.prune import prune
from regimes.flow.retrain import retrain
from regimes.flow.stage import Outcome, Report, size_of
from regimes.flow.store import Store
from regimes.flow.train import train

WORK: dict[str, Callable[..., Any]] = {
    "train": train,
    "given": take,
    "prune": prune,
    "discover": discover,
    "retrain": retrain,
    "measure": measure,
}


def do(fleet: Fleet, lab: Lab, store: Store, report: Report) -> None:
    """Do every stage of a fleet that nobody else has done meanwhile; report each as it is finished."""
    left = []
    for stage in fleet.stages:
        if _sound(stage.key, store):
            report(Outcome(stage.key))
        else:
            left.append(stage)
    if left:
        WORK[fleet.kind](left, lab.sized(size_of(left[0].at)), store, report)


def _sound(key: str, store: Store) -> bool:
    try:
        record = store.read(key)
        if record is None:
            return False
        if record.get("weights"):
            store.check_weights(key, record)
            return store.weights_file(key).exists()
    except Damaged:
        return False
    return True
