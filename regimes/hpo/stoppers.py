"""Stoppers of weak trials by name: Optuna's pruners, with defaults for the steps of a ladder.

A step is a cumulative cost: 1 for the first report, the cost of the whole ladder at the end. A stopper that counts
resources therefore counts seconds.

Successive halving and Hyperband decide once per step, and compare a trial's first report with all first reports. Median
and percentile compare the best value that a trial has reported so far, on any fidelity, with the others' at this step:
a trial that did well on its proxy is stopped late on the full network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optuna import pruners

from regimes.registry import call_strictly

T = TypeVar("T")
HALVING_STOPPERS = (pruners.SuccessiveHalvingPruner, pruners.HyperbandPruner)  # do not wait for finished trials
REDUCTION_FACTOR = 3  # one of three trials continues


def none(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """No stopping: every trial trains the full network."""
    return call_strictly(pruners.NopPruner, options)


def median(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Stop trials that are worse than the median of the trials at a step, after four finished trials."""
    return call_strictly(pruners.MedianPruner, {"n_startup_trials": 4, "n_warmup_steps": 0, **options})


def percentile(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Stop trials that are not in the best third at a step, after four finished trials."""
    chosen = {"percentile": 100 / REDUCTION_FACTOR, "n_startup_trials": 4, "n_warmup_steps": 0, **options}
    return call_strictly(pruners.PercentilePruner, chosen)


def halving(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Successive halving: at costs of 1, 3, 9, ... the best third continues, from the first trial on."""
    chosen = {"min_resource": 1, "reduction_factor": REDUCTION_FACTOR, **options}
    return call_strictly(pruners.SuccessiveHalvingPruner, chosen)


def hyperband(steps: Sequence[int], **options: Any) -> pruners.BasePruner:
    """Hyperband: brackets of successive halving that start deciding at different costs."""
    largest = max(steps[-1], REDUCTION_FACTOR)
    chosen = {"min_resource": 1, "max_resource": largest, "reduction_factor": REDUCTION_FACTOR, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call_strictly(pruners.HyperbandPruner, chosen)


def fair_order(batch: Sequence[T], value: Callable[[T], float]) -> list[T]:
    """Order a batch for the stopper: the best trial, then from the second third down to the worst, then the best third.

    The best third is ordered in the same way. Successive halving compares a trial only with those reported before it.
    In this order it decides as if it had seen the whole batch, also several times at one step whose cost is three
    times the one before or more; best first would let one trial through, worst first all of them.

    Args:
        batch: the trials.
        value: function that returns a trial's value; smaller is better.
    """
    ranked = sorted(batch, key=value)
    third = len(ranked) // 3
    if third < 2:
        return ranked
    return [*ranked[:1], *ranked[third:], *fair_order(ranked[:third], value)[1:]]
