"""Search space: Optuna's distributions, and the recipe with a trial's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from regimes.config.hpo import INTEGERS, Dimension
from regimes.config.recipe import Recipe

Space = Mapping[str, Dimension]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return {name: Optuna distribution}."""
    return {name: _distribution(name, dimension) for name, dimension in space.items()}


def _distribution(name: str, dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution([int(each) if name in INTEGERS else each for each in dimension.choices])
    assert dimension.low is not None
    assert dimension.high is not None
    if name in INTEGERS:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Return a trial's values, sampled now or before."""
    found: dict[str, Any] = {}
    for name, each in distributions(space).items():
        if isinstance(each, CategoricalDistribution):
            found[name] = trial.suggest_categorical(name, each.choices)
        elif isinstance(each, IntDistribution):
            found[name] = trial.suggest_int(name, each.low, each.high, log=each.log)
        elif isinstance(each, FloatDistribution):
            found[name] = trial.suggest_float(name, each.low, each.high, log=each.log)
    return found


def recipe_with(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with a trial's values.

    An epoch is always one pass through the data, so larger batches take fewer steps, as usual.
    """
    return Recipe.model_validate({**recipe.model_dump(), **values})
