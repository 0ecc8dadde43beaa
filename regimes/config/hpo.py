"""Models of a search file: the search space, the fidelities, the study and the regime map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict, model_validator

from regimes.config.recipe import Count, Flag, Name, Recipe, Section, Share
from regimes.config.sweep import Density, LoadConfig, MeasureConfig, Named

TUNABLE = (
    *("learning_rate", "weight_decay", "batch_size", "sam_rho", "label_smoothing", "momentum", "gamma"),
    *("warmup", "clip_norm", "beta1", "beta2"),
)
INTEGERS = ("batch_size", "epochs")  # hyperparameters that take integers
OptionValue = int | float | bool | str | list[int]  # value of a model's option
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]


class Dimension(Section):
    """One hyperparameter of the search space: a range or a list of values.

    Attributes:
        low, high: bounds of a range, inclusive.
        log: whether the range is searched on a logarithmic scale.
        choices: the values of a list, in place of a range.
    """

    low: Number | None = None
    high: Number | None = None
    log: Flag = False
    choices: tuple[Number, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, given: Any) -> Any:
        return {"choices": given} if isinstance(given, (list, tuple)) else given

    @model_validator(mode="after")
    def _check_consistent(self) -> Dimension:
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise ValueError("choices cannot be combined with low, high or log")
            if len(set(self.choices)) != len(self.choices) or not self.choices:
                raise ValueError("choices must be one or more distinct values")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("needs low < high, e.g. {low = 0.001, high = 1.0}, or a list of values")
        elif self.log and self.low <= 0:
            raise ValueError("log = true needs low above 0")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        if self.choices is not None:
            return min(self.choices), max(self.choices)
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def contains(self, value: float) -> bool:
        """Return whether a value is one of the list, or in the range."""
        if self.choices is not None:
            return value in self.choices
        low, high = self.ends
        return low <= value <= high

    def position(self, value: float) -> float:
        """Return the position of a value in the range, 0 at the lower and 1 at the upper end; in a list, by rank."""
        if self.choices is not None:
            ordered = sorted(self.choices)
            return ordered.index(value) / max(1, len(ordered) - 1)
        low, high = self.ends
        return math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)


class LadderSpec(Section):
    """Fidelities below the full training: proxies, parts of the training images, fewer epochs, and their reports.

    Attributes:
        proxy: method of making smaller networks, a name in `PROXIES`.
        densities: densities of the proxies, 1 for the full network on fewer ``images`` or ``epochs``; None: those that
            the map trusts; empty: the full training only.
        step_time: in place of densities: upper bounds on a proxy's measured time per training step, as fractions of
            the full network's; the density of each is searched for.
        option, values: in place of a proxy by surgery: the same model with other values of one of its options. The
            density of such a network is its share of the full network's parameters.
        images: fractions of the training images, stratified by class: every proxy, or without proxies the full network,
            is trained on each of them; None: all images.
        epochs: fraction of the recipe's epochs that all of these are trained for, with the schedule shortened
            accordingly; without proxies and ``images`` the full network is.
        reports: fractions of the full network's training at which it also reports a value, if trials continue to it
            or there is no proxy; promoted trials always train to the end.
        proxy_reports: the same for proxies. Early reports rank better than those in the middle of the training, where
            large learning rates look bad.
        most: maximum number of proxies taken from a map, cheapest first.
    """

    proxy: str = "narrowed"
    densities: tuple[Density, ...] | None = None
    step_time: tuple[Share, ...] | None = None
    option: Annotated[str, Strict()] | None = None
    values: tuple[OptionValue, ...] | None = None
    images: tuple[Density, ...] | None = None
    epochs: Annotated[float, Strict(), Field(gt=0, le=1)] = 1.0
    reports: tuple[Share, ...] = (0.1,)
    proxy_reports: tuple[Share, ...] = (0.1,)
    most: Count = 1

    @property
    def is_explicit(self) -> bool:
        """Whether the file sets the fidelities itself, so that no map is needed."""
        return any(each is not None for each in (self.densities, self.step_time, self.option, self.images))


class StudySpec(Section):
    """Settings of the Optuna study.

    Attributes:
        sampler: a name in `SAMPLERS`.
        stopper: a name in `STOPPERS`.
        value: objective on the validation split: "calibrated" (the default of the objective "full"): loss after
            temperature scaling, independent of confidence; "loss"; "error" (the default of "pruned").
        against: second value of a front, see `PrunedSpec`: "density", "parameters", or, if channels are removed, "macs"
            or "latency".
        pattern: "promote": a first study trains proxies only, a second one trains the best ``promoted`` trials in
            full; "ladder": every trial advances from the cheapest fidelity to the full network until it is stopped.
        promoted: number of trials that are promoted.
        sampler_options, stopper_options: keyword arguments of Optuna's classes.
    """

    sampler: str = "tpe"
    stopper: str = "halving"
    value: Literal["calibrated", "loss", "error"] = "calibrated"
    pattern: Literal["promote", "ladder"] = "promote"
    promoted: Count = 5
    against: Literal["density", "parameters", "macs", "latency"] = "density"
    sampler_options: Mapping[str, Any] = Field(default_factory=dict)
    stopper_options: Mapping[str, Any] = Field(default_factory=dict)


class MapSpec(Section):
    """The regime map that chooses the fidelities, unless ``--map`` gives one.

    Attributes:
        make: whether to make one first by a small adaptive sweep, whose seconds count as the search's; see
            `is_wanted`.
        temperature: {knob: values} of that sweep; empty: five learning rates over the range that is searched.
        density: densities of that sweep.
        epochs: fraction of the recipe's epochs that it trains for.
        dense_seeds: dense seeds of that sweep.
        budget: maximum number of its cells; 0: no limit.
    """

    make: Flag = True
    temperature: Mapping[str, list[Any]] = Field(default_factory=dict)
    density: tuple[Density, ...] = (0.05, 0.2)
    epochs: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.5
    dense_seeds: Count = 2
    budget: Annotated[int, Strict(), Field(ge=0)] = 0

    @property
    def is_wanted(self) -> bool:
        """Whether the file asks for a map: it has a table ``[map]``, without ``make = false``."""
        return bool(self.model_fields_set) and self.make


class PrunedSpec(Section):
    """Pruning, retraining and measurements of the objective "pruned", as in a sweep file.

    Attributes:
        load: densities and pruning method; several densities: the search is for the front of value against cost.
        retrain: recipe of the pruned networks, the same in every trial.
        retrain_seeds: retrained copies of each pruned network; a trial's value is their mean.
        measure: metrics measured besides the validation value.
    """

    load: LoadConfig
    retrain: Recipe
    retrain_seeds: Count = 1
    measure: MeasureConfig = MeasureConfig(metrics=("error",))

    @property
    def densities(self) -> tuple[float, ...]:
        """The densities, smallest first."""
        return tuple(sorted(self.load.density))


class Hpo(Section):
    """A hyperparameter search.

    Attributes:
        name: name of the study.
        objective: "full": the network as it is; "pruned": after pruning to a density and retraining.
        pruned: settings of the objective "pruned"; None for "full".
        data, model, recipe: the full network; each trial sets the recipe's fields named in ``space``.
        space: {field of the recipe: dimension}.
        ladder, study, map: see their classes.
        trials: total number of trials.
        batch: number of trials sampled together, so that their proxies train as one fleet.
        seed: seed of the sampler and of every training.
        final_seeds: number of new trainings of the best trial, each evaluated once on the test split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    objective: Literal["full", "pruned"] = "full"
    data: Named
    model: Named
    recipe: Recipe
    pruned: PrunedSpec | None = None
    space: dict[str, Dimension]
    ladder: LadderSpec = LadderSpec()
    study: StudySpec = StudySpec()
    map: MapSpec = MapSpec()
    trials: Count = 64
    batch: Annotated[int, Strict(), Field(ge=1, le=1000)] = 16
    seed: Annotated[int, Strict(), Field(ge=0)] = 0
    final_seeds: Count = 3
