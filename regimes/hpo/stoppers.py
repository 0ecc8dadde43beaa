"""Optuna's stoppers of weak trials by name, set up for the steps of a ladder (Optuna calls them pruners).

The steps that a ladder reports are costs: 1 for the cheapest rung, the whole climb at the end. So a stopper that counts
resources counts seconds.

What Optuna's own do with rungs: halving and hyperband decide once on a step, and file a trial's first report with all
first reports. Median and percentile hold the best value that a trial has had so far, on whatever rung, against the
others' at this step: a trial that did well on its proxy is stopped late on the full network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optuna import pruners

T = TypeVar("T")
AT_ONCE = (pruners.SuccessiveHalvingPruner, pruners.HyperbandPruner)  # decide by reports, whoever has finished
FACTOR = 3  # of the trials that come to a step one goes on


def none(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Every trial climbs to the top."""
    return pruners.NopPruner(**options)


def median(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Stops what is worse than the median of finished trials at a step, from four finished trials on."""
    return pruners.MedianPruner(**{"n_startup_trials": 4, "n_warmup_steps": 0, **options})


def percentile(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Stops what is not among the best third of finished trials at a step, from four finished trials on."""
    chosen = {"percentile": 100 / FACTOR, "n_startup_trials": 4, "n_warmup_steps": 0, **options}
    return pruners.PercentilePruner(**chosen)


def halving(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Successive halving: of those that come to a cost of 1, 3, 9, ... the best third goes on, from the first trial."""
    return pruners.SuccessiveHalvingPruner(**{"min_resource": 1, "reduction_factor": FACTOR, **options})


def hyperband(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Brackets of successive halving: some trials are spared the first decisions."""
    chosen = {"min_resource": 1, "max_resource": max(steps[-1], FACTOR), "reduction_factor": FACTOR, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pruners.HyperbandPruner(**chosen)


def fair_order(batch: Sequence[T], value: Callable[[T], float]) -> list[T]:
    """The order in which a batch is put before the stopper: the best, then from a third down to the worst, then the
    rest of the best third in such an order, too.

    Successive halving compares a trial with those that were asked about before it. In this order it decides on a batch
    as if it had seen all of it, several times at one step where that is three times as dear as the one before, and
    more: best first it would let one through, worst first all.
    """
    ranked = sorted(batch, key=value)
    third = len(ranked) // 3
    if third < 2:
        return ranked
    return [*ranked[:1], *ranked[third:], *fair_order(ranked[:third], value)[1:]]
