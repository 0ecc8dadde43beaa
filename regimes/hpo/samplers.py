"""Optuna's samplers by name, with settings that do not change from one of its releases to the next.

A sampler's numbers follow from the seed and, where several workers ask, from the worker, so that no two ask for the
same points.
"""

from __future__ import annotations

import warnings
from typing import Any

from optuna import samplers


def tpe(seed: int, **options: Any) -> samplers.BaseSampler:
    """Tree-structured Parzen estimators, jointly over the space; trials that are running count as bad ones, so that a
    batch spreads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls some of its settings experimental
        return samplers.TPESampler(**{"seed": seed, "multivariate": True, "constant_liar": True, **options})


def cma_es(seed: int, **options: Any) -> samplers.BaseSampler:
    """Covariance matrix adaptation, which learns from stopped trials too; a list of values is drawn at random."""
    chosen = {"seed": seed, "warn_independent_sampling": False, "consider_pruned_trials": True, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return samplers.CmaEsSampler(**chosen)


def gp(seed: int, **options: Any) -> samplers.BaseSampler:
    """Bayesian optimisation by a Gaussian process.

    It learns from trials alone that came to the top; beside a stopper that lets few through, it is nearly random.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return samplers.GPSampler(**{"seed": seed, "deterministic_objective": False, **options})


def random(seed: int, **options: Any) -> samplers.BaseSampler:
    """Independent draws."""
    return samplers.RandomSampler(**{"seed": seed, **options})
