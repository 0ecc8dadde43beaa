"""The space that is searched: Optuna's distributions, and the recipe of a trial's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from regimes.config.hpo import WHOLE, Dimension
from regimes.config.recipe import Recipe

Space = Mapping[str, Dimension]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """{name: Optuna's distribution}."""
    return {name: _distribution(name, dimension) for name, dimension in space.items()}


def _distribution(name: str, dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution([int(each) if name in WHOLE else each for each in dimension.choices])
    assert dimension.low is not None
    assert dimension.high is not None
    if name in WHOLE:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """A trial's values, drawn now or before."""
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
    """The recipe with a trial's values.

    An epoch stays one pass through the data, so that a large batch takes fewer steps, as it does for people.
    """
    return Recipe.model_validate({**recipe.model_dump(), **values})
