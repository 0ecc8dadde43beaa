"""Optuna's samplers by name, with defaults fixed independently of Optuna's release.

A sampler is seeded from the study's seed and the worker's number, so that no two workers sample the same points.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from optuna import samplers

from regimes.registry import call_strictly

if TYPE_CHECKING:
    from regimes.config.hpo import Hpo


def tpe(seed: int, **options: Any) -> samplers.BaseSampler:
    """Tree-structured Parzen estimator, multivariate.

    Running trials count as bad ones, so that the points of a batch spread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental options
        return call_strictly(
            samplers.TPESampler, {"seed": seed, "multivariate": True, "constant_liar": True, **options}
        )


def cma_es(seed: int, **options: Any) -> samplers.BaseSampler:
    """CMA-ES that also learns from stopped trials; categorical values are sampled at random."""
    chosen = {"seed": seed, "warn_independent_sampling": False, "consider_pruned_trials": True, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call_strictly(samplers.CmaEsSampler, chosen)


def gp(seed: int, **options: Any) -> samplers.BaseSampler:
    """Bayesian optimisation with a Gaussian process.

    It learns only from completed trials; with a stopper that lets few through it is nearly random.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call_strictly(samplers.GPSampler, {"seed": seed, "deterministic_objective": False, **options})


def random(seed: int, **options: Any) -> samplers.BaseSampler:
    """Independent random sampling."""
    return call_strictly(samplers.RandomSampler, {"seed": seed, **options})


def nothing_to_learn(spec: Hpo) -> str:
    """Return the message that a batch of all trials is sampled before any result."""
    return (
        f"batch = {spec.batch}, trials = {spec.trials}: sampled before any result, so the sampler "
        f"'{spec.study.sampler}' has nothing to learn from; use a smaller batch, e.g. {max(1, spec.trials // 4)}"
    )
