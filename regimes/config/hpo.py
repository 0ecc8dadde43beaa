"""What a search of hyperparameters asks for: the space, the ladder of proxies, the study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict, model_validator

from regimes.config.recipe import Count, Recipe, Section, Share, Yes
from regimes.config.sweep import Density, Named

TUNABLE = ("learning_rate", "weight_decay", "batch_size", "sam_rho", "label_smoothing", "momentum", "gamma")
WHOLE = ("batch_size",)  # whole numbers
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]


class Dimension(Section):
    """One hyperparameter of the space: a range, or a list of values.

    Attributes:
        low, high: ends of a range, both allowed.
        log: whether it is searched on a logarithmic scale.
        choices: the values of a list; a range is None then.
    """

    low: Number | None = None
    high: Number | None = None
    log: Yes = False
    choices: tuple[Number, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, given: Any) -> Any:
        return {"choices": given} if isinstance(given, (list, tuple)) else given

    @model_validator(mode="after")
    def _means_something(self) -> Dimension:
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise ValueError("choices need no low, high or log")
            if len(set(self.choices)) != len(self.choices) or not self.choices:
                raise ValueError("choices are one or more values, each once")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("low and high are needed, low below high: {low = 0.001, high = 1.0}, or a list of values")
        elif self.log and self.low <= 0:
            raise ValueError("on a logarithmic scale low has to be above 0")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value."""
        if self.choices is not None:
            return min(self.choices), max(self.choices)
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the lower end, 1 at the upper, beyond them outside; a list counts by its order."""
        if self.choices is not None:
            ordered = sorted(self.choices)
            return ordered.index(value) / max(1, len(ordered) - 1)
        low, high = self.ends
        return math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)


class LadderSpec(Section):
    """The rungs that a trial climbs before the full network.

    Attributes:
        proxy: how smaller networks are made, a name in `PROXIES`.
        densities: fractions of the prunable weights kept, of the rungs below the full network; None: those that the
            map trusts; empty: the full network alone.
        step_time: instead of densities: shares of the full network's measured seconds per training step that proxies
            may take at most; the density of each is looked for.
        epochs: share of the recipe's epochs that proxies are trained for, their schedule shortened to it.
        reports: shares of the full network's training at which it is reported too, before its end, where trials climb
            to it or there is no proxy; one that is promoted is trained to its end.
        proxy_reports: the same of a proxy's. Early is better than in the middle, where large learning rates look bad.
        most: rungs below the full network that are taken from a map, the cheapest first.
        shift: {hyperparameter: power}: a proxy that keeps a fraction d of the weights is trained with a trial's value
            times ``d ** -power``; small networks do best at larger learning rates.
    """

    proxy: str = "narrowed"
    densities: tuple[Density, ...] | None = None
    step_time: tuple[Share, ...] | None = None
    epochs: Annotated[float, Strict(), Field(gt=0, le=1)] = 1.0
    reports: tuple[Share, ...] = (0.1,)
    proxy_reports: tuple[Share, ...] = (0.1,)
    most: Count = 1
    shift: Mapping[Literal["learning_rate", "weight_decay", "sam_rho"], Number] = Field(default_factory=dict)

    @property
    def by_hand(self) -> bool:
        """Whether the rungs are asked for, and no map chooses them."""
        return self.densities is not None or self.step_time is not None


class StudySpec(Section):
    """The study in Optuna.

    Attributes:
        sampler: a name in `SAMPLERS`.
        stopper: a name in `STOPPERS`.
        value: what is minimised, on the validation split: "calibrated": the loss with each network's outputs scaled as
            suits them best, as fine as a loss, and no matter of confidence; "loss"; "error".
        pattern: "promote": a study of proxies first, the best ``promoted`` of which are then trained in full in a
            study of their own; "ladder": every trial climbs, and the stopper says how far.
        promoted: see ``pattern``.
        sampler_options, stopper_options: keyword arguments of Optuna's classes.
    """

    sampler: str = "tpe"
    stopper: str = "halving"
    value: Literal["calibrated", "loss", "error"] = "calibrated"
    pattern: Literal["promote", "ladder"] = "promote"
    promoted: Count = 5
    sampler_options: Mapping[str, Any] = Field(default_factory=dict)
    stopper_options: Mapping[str, Any] = Field(default_factory=dict)


class MapSpec(Section):
    """The map that decides on rungs, where none is given by ``--map``.

    Attributes:
        make: whether a small adaptive sweep makes one first; its seconds count. Without a map the densities of the
            ladder are taken as they stand.
        temperature: {knob: values} of that sweep; empty: the learning rate, over the space's own range.
        density: of that sweep.
        epochs: of its trainings, as a share of the recipe's.
        dense_seeds: of that sweep.
        budget: cells of that sweep at most; 0: as many as it takes.
    """

    make: Yes = True
    temperature: Mapping[str, list[Any]] = Field(default_factory=dict)
    density: tuple[Density, ...] = (0.05, 0.2)
    epochs: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.5
    dense_seeds: Count = 2
    budget: Annotated[int, Strict(), Field(ge=0)] = 0


class Hpo(Section):
    """A search of hyperparameters.

    Attributes:
        name: of the study.
        data, model, recipe: of the full network; what the space names is set by each trial.
        space: {field of the recipe: dimension}.
        ladder, study, map: see there.
        trials: in all.
        batch: trials that are asked for together, so that their proxies train as one fleet.
        seed: of the sampler and of every training.
        final_seeds: fresh trainings of the winner, each judged once on the test split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Strict(), Field(min_length=1)]
    data: Named
    model: Named
    recipe: Recipe
    space: dict[str, Dimension]
    ladder: LadderSpec = LadderSpec()
    study: StudySpec = StudySpec()
    map: MapSpec = MapSpec()
    trials: Count = 64
    batch: Count = 16
    seed: Annotated[int, Strict(), Field(ge=0)] = 0
    final_seeds: Count = 3
