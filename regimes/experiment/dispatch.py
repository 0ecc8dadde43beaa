"""Dispatch of fleets to the functions that do their kind of stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regimes.experiment.context import RunContext
from regimes.experiment.schedule import Fleet
from regimes.experiment.stages.discover import discover
from regimes.experiment.stages.measure import measure
from regimes.experiment.stages.pretrained import import_checkpoints
from regimes.experiment.stages.prune import prune
from regimes.experiment.stages.retrain import retrain
from regimes.experiment.stages.stage import Outcome, Report, size_of
from regimes.experiment.stages.train import train
from regimes.experiment.store import Store

STAGE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "train": train,
    "given": import_checkpoints,
    "prune": prune,
    "discover": discover,
    "retrain": retrain,
    "measure": measure,
}


def run_fleet(fleet: Fleet, context: RunContext, store: Store, report: Report) -> None:
    """Do every stage of a fleet that another process has not done meanwhile; report each as it finishes."""
    pending = []
    for stage in fleet.stages:
        if store.is_intact(stage.key):
            report(Outcome(stage.key, ours=False))
        else:
            pending.append(stage)
    if pending:
        STAGE_FUNCTIONS[fleet.kind](pending, context.sized(size_of(pending[0].coords)), store, report)
