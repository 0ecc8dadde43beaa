"""A sampler of recorded settings alone: what another sampler would ask for, moved to the nearest one left."""

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
    """Draws settings of a recording, each once in a study.

    Args:
        base: says where in the space.
        settings: that are recorded.
        space: of the search.
        drawing: is called for every draw.
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
        self.only: dict[str, Any] = {}  # values to which the choice is held
        self.taken: set[int] = set()  # drawn already; Hyperband shows a sampler a part of its study only

    def partly(self, values: Mapping[str, Any]) -> PoolSampler:
        """The same with some values given."""
        held = copy.copy(self)  # what is drawn stays one set
        held.only = dict(values)
        return held

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space: settings are drawn whole."""
        return distributions(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The recorded setting that is nearest to what the base asks for, and not yet in the study."""
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
        raise RuntimeError(f"the recording's {len(self.settings)} settings are used up")

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of what is not in the space."""
        return self.base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the base has it."""
        self.base.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the base has it."""
        self.base.after_trial(study, trial, state, values)

    def _place(self, setting: Mapping[str, Any]) -> NDArray[np.float64]:
        """Where a setting lies in the unit cube."""
        return np.array([self.space[name].share(setting[name]) for name in self.names])
