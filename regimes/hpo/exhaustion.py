"""Samplers that end a study: a grid, or every setting once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.samplers import BruteForceSampler, GridSampler

from regimes.hpo.search_space import Space, distributions

EXHAUSTIBLE_SAMPLERS = (GridSampler, BruteForceSampler)


def settings_left(study: optuna.Study, space: Space) -> float:
    """Return the number of settings that the study's sampler has not tried yet; infinite for most samplers."""
    trials = study.get_trials(deepcopy=False)
    if isinstance(study.sampler, GridSampler):
        tried = {each.system_attrs["grid_id"] for each in trials if "grid_id" in each.system_attrs}
        return len(study.sampler._all_grids) - len(tried)
    if isinstance(study.sampler, BruteForceSampler):
        names = sorted(space)
        settings = {tuple(each.params[name] for name in names) for each in trials if space.keys() <= each.params.keys()}
        return math.prod(_count(each) for each in distributions(space).values()) - len(settings)
    return math.inf


def _count(distribution: optuna.distributions.BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    return distribution.high - distribution.low + 1 if isinstance(distribution, IntDistribution) else math.inf


@contextmanager
def ended_by_sampler(study: optuna.Study) -> Iterator[None]:
    """Let a sampler end the study outside ``study.optimize``, where `Study.stop` raises; see `settings_left`."""
    vars(study)["stop"] = lambda: None
    try:
        yield
    finally:
        del vars(study)["stop"]
