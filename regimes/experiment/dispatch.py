"""Do one fleet: the only place that knows which function does which stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regimes.experiment.atomic_files import Damaged
from regimes.experiment.context import Lab
from regimes.experiment.schedule import Fleet
from regimes.experiment.stages.discover import discover
from regimes.experiment.stages.measure import measure
from regimes.experiment.stages.pretrained import take
from regimes.experiment.stages.prune import prune
from regimes.experiment.stages.retrain import retrain
from regimes.experiment.stages.stage import Outcome, Report, size_of
from regimes.experiment.stages.train import train
from regimes.experiment.store import Store

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
