"""Finished and running cells of a study, in coordinates of the unit cube."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from regimes.hpo.pruned import DENSITY, EPOCHS
from regimes.hpo.pruned.cell_direction import p_hotter
from regimes.knobs import KNOBS
from regimes.registry import lookup

Numbers = NDArray[np.float64]
MOST_EPOCHS = 10  # of a range, at which settings that were tried are candidates
MAX_SPREADS = 2.0  # values further above the median than so many times the lower spread count as this far


@dataclass(frozen=True)
class UnitAxis:
    """A hyperparameter as a coordinate from 0 to 1; the values of a list are spaced evenly."""

    name: str
    distribution: BaseDistribution

    def position(self, value: float) -> float:
        """Return the coordinate of a value."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return self.choices.index(value) / max(1, len(self.choices) - 1)
        assert isinstance(d, (FloatDistribution, IntDistribution))
        if d.log:
            return math.log(value / d.low) / math.log(d.high / d.low)
        return (value - d.low) / (d.high - d.low)

    def value(self, position: float) -> Any:
        """Return the allowed value nearest to a coordinate."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return self.choices[round(position * (len(self.choices) - 1))]
        assert isinstance(d, (FloatDistribution, IntDistribution))
        found = d.low * (d.high / d.low) ** position if d.log else d.low + position * (d.high - d.low)
        if isinstance(d, IntDistribution):
            return int(min(max(round(found), d.low), d.high))
        return float(min(max(found, d.low), d.high))

    @property
    def choices(self) -> list[Any]:
        """The values of a list, in order."""
        assert isinstance(self.distribution, CategoricalDistribution)
        return sorted(self.distribution.choices)


@dataclass(frozen=True)
class UnitSpace:
    """A search space of numbers as the unit cube, with the density, if it varies, as the last coordinate.

    Attributes:
        axes: the hyperparameters.
        densities: the densities, smallest first; (): the density does not vary.
    """

    axes: tuple[UnitAxis, ...]
    densities: tuple[float, ...] = ()

    @classmethod
    def of(cls, space: Mapping[str, BaseDistribution]) -> UnitSpace | None:
        """Return the cube of a search space; None if it is empty or has a list of other values than numbers."""
        densities: tuple[float, ...] = ()
        axes = []
        for name, each in sorted(space.items()):
            if isinstance(each, CategoricalDistribution):
                if not all(isinstance(value, (int, float)) for value in each.choices):
                    return None
                if name == DENSITY:
                    densities = tuple(sorted(float(value) for value in each.choices if value is not None))
                    continue
            axes.append(UnitAxis(name, each))
        return cls(tuple(axes), densities) if axes else None

    @property
    def count(self) -> int:
        """Number of hyperparameters, without the density."""
        return len(self.axes)

    @property
    def hotter(self) -> Numbers:
        """Direction (k,) of length 1 in which all knobs of temperature become hotter; 0 for other hyperparameters."""
        signs = [
            0.0 if axis.name not in KNOBS else 1.0 if lookup(KNOBS, axis.name, "knob").hotter == "larger" else -1.0
            for axis in self.axes
        ]
        found = np.array([*signs, *([0.0] if self.densities else [])])
        return np.asarray(found / max(float(np.linalg.norm(found)), 1.0))

    @property
    def heights(self) -> Numbers:
        """Coordinates of the densities, evenly in their logarithm."""
        logs = np.log(self.densities or (1.0,))
        return np.asarray((logs - logs[0]) / (logs[-1] - logs[0]) if len(logs) > 1 else np.zeros(1))

    @property
    def widths(self) -> Numbers:
        """Weight of each density in the area under a front: to the next density; the last one as the mean."""
        if len(self.heights) == 1:
            return np.ones(1)
        apart = np.diff(self.heights)
        return np.append(apart, apart.mean())

    def setting(self, params: Mapping[str, Any]) -> Numbers:
        """Return the coordinates of a trial's hyperparameters."""
        return np.array([each.position(params[each.name]) for each in self.axes])

    def place(self, params: Mapping[str, Any]) -> Numbers:
        """Return the coordinates of a trial's cell: those of its setting, and of its density if it varies."""
        setting = self.setting(params)
        if not self.densities:
            return setting
        return np.append(setting, self.heights[self.densities.index(float(params[DENSITY]))])

    def at_densities(self, settings: Numbers) -> Numbers:
        """Return the cells (n d, k) of settings at every density, settings first."""
        if not self.densities:
            return settings
        cells = np.repeat(settings, len(self.densities), axis=0)
        return np.column_stack([cells, np.tile(self.heights, len(settings))])

    def snapped(self, settings: Numbers) -> Numbers:
        """Return settings moved to allowed values, each once."""
        moved = [
            [axis.position(axis.value(each)) for axis, each in zip(self.axes, row, strict=True)] for row in settings
        ]
        return np.unique(np.array(moved), axis=0)

    def params(self, setting: Numbers) -> dict[str, Any]:
        """Return the hyperparameters at the coordinates of a setting."""
        return {axis.name: axis.value(each) for axis, each in zip(self.axes, setting, strict=True)}

    def at_density(self, setting: Mapping[str, Any], density: int) -> dict[str, Any]:
        """Return the parameters of a cell: a setting at the density of an index."""
        return {**setting, DENSITY: self.densities[density]} if self.densities else dict(setting)

    def at_every_epoch(self, settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return settings with every epoch of the space, each once: snapshots of trainings that exist may cost less."""
        axis = next((each for each in self.axes if each.name == EPOCHS), None)
        if axis is None:
            return [dict(each) for each in settings]
        places = np.linspace(0, 1, MOST_EPOCHS)
        epochs = list(dict.fromkeys(axis.value(each) for each in places))
        found = [{**each, EPOCHS: epoch} for each in settings for epoch in dict.fromkeys([each[EPOCHS], *epochs])]
        return list({tuple(sorted(each.items())): each for each in found}.values())


@dataclass(frozen=True)
class Observed:
    """Finished and running cells of a study.

    Attributes:
        places: (n, k) cells that finished, each once.
        values: (n,) logarithms of their values, with far outliers (also diverged cells) moved in.
        trainings: (n,) number of the dense training of each.
        pending: (m, k) cells of running trials.
        settings: hyperparameters of all cells, finished or running, without the density, each once.
        p_hotter: (n,) probability that hotter is better than colder, by the cell's landscape; NaN if not known.
    """

    places: Numbers
    values: Numbers
    trainings: NDArray[np.int64]
    pending: Numbers
    settings: tuple[dict[str, Any], ...]
    p_hotter: Numbers

    def best(self, smooth: Numbers, space: UnitSpace) -> Numbers:
        """Return the front (d,): the best value at each density or below it; the worst value where there is none.

        Args:
            smooth: (n,) values of the cells without noise; the lowest of noisy values would be too good.
            space: the search space.
        """
        if not space.densities:
            return np.array([smooth.min()])
        found, best = [], smooth.max()
        for height in space.heights:
            best = min(best, smooth[np.abs(self.places[:, -1] - height) < 1e-9].min(initial=best))
            found.append(best)
        return np.array(found)


def observed(study: optuna.Study, space: UnitSpace, chance_error: float | None = None) -> Observed:
    """Return what a study has seen.

    Args:
        study: the study.
        space: its search space.
        chance_error: error of guessing, to judge the landscapes of cells; None: they are not judged.
    """
    names = {each.name for each in space.axes} | ({DENSITY} if space.densities else set())
    trials = [each for each in study.get_trials(deepcopy=False) if names <= set(each.params)]
    cells: dict[tuple[float, ...], list[float]] = {}
    trainings: dict[tuple[float, ...], int] = {}
    rows: dict[tuple[float, ...], int] = {}
    hotter: dict[tuple[float, ...], float | None] = {}
    for trial in trials:
        value = _value(trial)
        if value is None:
            continue
        place = tuple(space.place(trial.params))
        cells.setdefault(place, []).append(value)
        dense = tuple(
            each for axis, each in zip(space.axes, space.setting(trial.params), strict=True) if axis.name != EPOCHS
        )
        rows[place] = trainings.setdefault(dense, len(trainings))
        measures = trial.user_attrs.get("regimes:cell")
        if chance_error is not None and measures is not None:
            hotter[place] = p_hotter(measures, chance_error)
    running = [space.place(each.params) for each in trials if each.state == TrialState.RUNNING]
    settings = [{axis.name: each.params[axis.name] for axis in space.axes} for each in trials]
    axes = space.count + bool(space.densities)
    return Observed(
        np.array(list(cells)).reshape(len(cells), axes),
        _moved_in(np.array([np.mean(each) for each in cells.values()])),
        np.array([rows[each] for each in cells], dtype=np.int64),
        np.array(running).reshape(len(running), axes),
        tuple({tuple(each.items()): each for each in settings}.values()),
        np.array([np.nan if (p := hotter.get(each)) is None else p for each in cells], dtype=float),
    )


def _value(trial: FrozenTrial) -> float | None:
    """The value of a finished trial, infinite if it diverged; None if it has none."""
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[0])
    return math.inf if trial.user_attrs.get("regimes:why") == "diverged" else None


def _moved_in(values: Numbers) -> Numbers:
    """Logarithms of values, with those far above the median moved to a bound."""
    if not len(values):
        return values
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(len(values))
    floor = 0.5 * finite[finite > 0].min(initial=1.0)
    logs = np.log(np.clip(np.where(np.isfinite(values), values, finite.max()), 0.0, None) + floor)
    middle = np.median(logs)
    bound = middle + MAX_SPREADS * max(middle - logs.min(), 1e-3)
    logs = np.where(np.isfinite(values), logs, np.inf)
    return np.minimum(logs, bound)
