"""Optuna's stoppers of weak trials by name, set up for the steps of a ladder (Optuna calls them pruners).

The steps that a ladder reports are costs: 1 for the cheapest rung, the whole climb at the end. So a stopper that counts
resources counts seconds.

What Optuna's own do with rungs: halving and hyperband decide once on a step, and file a trial's first report with all
first reports. Median and percentile hold the best value that a trial has had so far, on whatever rung, against the
others' at this step: a trial that did well on its proxy is stopped late on the full network.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from optuna import pruners

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
