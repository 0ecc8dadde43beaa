"""Sampler restricted to the recorded settings: snaps another sampler's draws to the nearest unused one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from regimes.config.hpo import Dimension
from regimes.hpo.search_space import distributions


class PoolSampler(BaseSampler):
    """Draw recorded settings without replacement.

    Args:
        base: sampler that proposes points of the space.
        settings: the recorded settings.
        space: search space.
        drawing: called at every draw.
    """

    def __init__(
        self,
        base: BaseSampler,
        settings: Sequence[Mapping[str, Any]],
        space: Mapping[str, Dimension],
        drawing: Callable[[], None] = lambda: None,
    ) -> None:
        self.base, self.settings, self.space, self.drawing = base, settings, space, drawing
        self.names = sorted(space)
        self.places = np.array([self._place(each) for each in settings])
        self.only: dict[str, Any] = {}  # values fixed by `partly`
        self.taken: set[int] = set()  # indices drawn; needed since Hyperband shows a sampler only a part of its study

    def partly(self, values: Mapping[str, Any]) -> PoolSampler:
        """Return the same sampler with some values fixed."""
        held = copy.copy(self)  # shares the set of drawn indices
        held.only = dict(values)
        return held

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space, since settings are drawn as a whole."""
        return distributions(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the unused recorded setting nearest to the base sampler's proposal."""
        asked = dict(self.base.sample_relative(study, trial, self.base.infer_relative_search_space(study, trial)))
        for name in self.names:
            if name not in asked:
                asked[name] = self.base.sample_independent(study, trial, name, search_space[name])
        self.drawing()
        away = np.square(self.places - self._place({**asked, **self.only})).sum(axis=1)
        for number in map(int, np.argsort(away, kind="stable")):
            found = self.settings[number]
            if number not in self.taken and all(found[name] == value for name, value in self.only.items()):
                self.taken.add(number)
                return dict(found)
        raise RuntimeError(f"all {len(self.settings)} recorded settings are used up")

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter outside the space with the base sampler."""
        return self.base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Call the base sampler's hook."""
        self.base.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Call the base sampler's hook."""
        self.base.after_trial(study, trial, state, values)

    def _place(self, setting: Mapping[str, Any]) -> NDArray[np.float64]:
        """A setting as a point in the unit cube."""
        return np.array([self.space[name].position(setting[name]) for name in self.names])
