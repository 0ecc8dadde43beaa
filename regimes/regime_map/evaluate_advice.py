"""Evaluation of advice: advisers and baselines compared on held-out test errors."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.regime_map import ADVISERS
from regimes.regime_map.baselines import BASELINES, temperature_of
from regimes.regime_map.cell_stats import seed_means
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.regime_map import RegimeMap

ERROR_ADVISERS = ("error", "fitted", "joint")  # advisers that use test errors
ERROR_FLOOR = 1e-4  # errors are clipped to this before taking logarithms
# A temperature is a case for a direction if it is worse than the best by this share of the error, and by this many
# standard deviations of the difference between the log errors of two seeds.
MIN_RELATIVE_EXCESS = 0.1
MIN_EXCESS_DEVIATIONS = 2.0


@dataclass(frozen=True)
class AdviceEvaluation:
    """Score of an adviser or baseline over densities, seeds and current temperatures.

    Attributes:
        name: the adviser or baseline.
        right: share of right directions among the temperatures that are worse than the best beyond noise: by more than
            10 % of its error, and by two standard deviations of the difference of two seeds' log errors at that
            density. NaN for baselines without directions.
        cases: number of those temperatures.
        mean, worst: mean and maximum excess: test error of the selected temperature minus the lowest at that density
            (the oracle's).
        captured: share of the oracle's gain over a random temperature that was achieved; 1 for the oracle, 0 for
            chance. In log error, so that neither a rare collapse nor low densities dominate the mean.
        choices: number of selections.
        chance: mean log error of a random temperature minus the oracle's.
    """

    name: str
    right: float
    cases: int
    mean: float
    worst: float
    captured: float
    choices: int
    chance: float = float("nan")


@dataclass
class _Tally:
    right: list[bool]
    excess: list[float]
    ratio: list[float]
    chance: list[float]


def evaluate_advice(
    data: xr.Dataset,
    advisers: Iterable[str] | None = None,
    leave_density: bool = False,
    seeds: Iterable[int] | None = None,
) -> list[AdviceEvaluation]:
    """Evaluate advisers and baselines on the test errors of a grid, leaving one dense seed out at a time.

    The map is built from all dense seeds but one and evaluated on the test errors of that one. With a single dense seed
    it is evaluated on its own errors, at the densities between the two ends; advisers that use test errors then get a
    map without that density.

    Args:
        data: a grid with ``test_error``.
        advisers: names in `ADVISERS` or import paths; None for all whose measures the grid has.
        leave_density: also leave out the density in question; the two ends are then not evaluated.
        seeds: dense seeds to leave out, of a grid with several; None: all.

    Raises:
        UserError: the grid has no test errors.
    """
    if "test_error" not in data:
        raise UserError("evaluating advice needs test errors, and this grid has none")
    tallies: dict[str, _Tally] = {}
    advisers = _answering(data) if advisers is None else list(advisers)
    whole = data["dense_seed"].values.tolist() if data.sizes.get("dense_seed", 1) > 1 else [None]
    for seed in whole if seeds is None else seeds:
        known = data if seed is None else data.sel(dense_seed=[each for each in whole if each != seed])
        unseen = data if seed is None else data.sel(dense_seed=[seed])
        _hold(data, known, unseen, advisers, leave_density, tallies)
    return [_summary(name, tally) for name, tally in tallies.items()]


def _answering(data: xr.Dataset) -> list[str]:
    """Names of the advisers whose measures a grid has."""
    chart, found = RegimeMap(data), []
    load = next(_loads(MeasuredGrid.of(chart.data)))
    more = {key: value for key, value in load.items() if key != "density"}
    for name in ADVISERS:
        with contextlib.suppress(UserError):
            chart.select(load.get("density"), more, name)
            found.append(name)
    return found


def _hold(
    data: xr.Dataset,
    known: xr.Dataset,
    unseen: xr.Dataset,
    advisers: Iterable[str],
    leave: bool,
    tallies: dict[str, _Tally],
) -> None:
    """Compare the advice of a map of the known seeds with the errors of the unseen ones."""
    whole, there = RegimeMap(known), MeasuredGrid.of(unseen)
    own = unseen is known
    settings = _settings(there)
    for load in _loads(there):
        errors = _errors(there, load)
        if not np.isfinite(errors).all():
            continue
        without = _without(known, load) if leave or own else whole
        if without is None:
            continue  # all methods are evaluated at the same densities
        dense, least = _dense(there, load), _noise(data, there.knobs, load)
        for name, baseline in BASELINES.items():
            cost = baseline(there, dense)
            if cost is not None:
                _note(tallies, name, errors, int(cost.argmin()))
        _directions(tallies, "always colder", errors, temperature_of(there), ["colder"] * len(errors), least)
        for name in advisers:
            chart = without if leave or name in ERROR_ADVISERS else whole
            _ask(tallies, name, chart, load, settings, errors, temperature_of(there), least)


def _ask(
    tallies: dict[str, _Tally],
    name: str,
    chart: RegimeMap,
    load: Mapping[str, float],
    settings: Sequence[Mapping[str, float]],
    errors: Numbers,
    temperature: Numbers,
    least: float,
) -> None:
    more = {key: value for key, value in load.items() if key != "density"}
    density = load.get("density")
    chosen = chart.select(density, more, name).selected
    _note(tallies, name, errors, list(settings).index(chosen))
    said = [chart.advise(density, {**each, **more}, name).direction for each in settings]
    _directions(tallies, name, errors, temperature, said, least)


def _note(tallies: dict[str, _Tally], name: str, errors: Numbers, chosen: int) -> None:
    tally = tallies.setdefault(name, _Tally([], [], [], []))
    tally.excess.append(float(errors[chosen] - errors.min()))
    logs = np.log(errors.clip(ERROR_FLOOR))
    tally.ratio.append(float(logs[chosen] - logs.min()))
    tally.chance.append(float((logs - logs.min()).mean()))


def _directions(
    tallies: dict[str, _Tally], name: str, errors: Numbers, temperature: Numbers, said: Sequence[str], least: float
) -> None:
    tally = tallies.setdefault(name, _Tally([], [], [], []))
    best = int(errors.argmin())
    for here, word in enumerate(said):
        if abs(temperature[best] - temperature[here]) < 1e-9:
            continue  # equally hot, by other knobs
        worse = errors[here] > (1 + MIN_RELATIVE_EXCESS) * errors[best]
        if worse and np.log(errors[here] / max(errors[best], ERROR_FLOOR)) > least:
            tally.right.append(word == ("hotter" if temperature[best] > temperature[here] else "colder"))


def _summary(name: str, tally: _Tally) -> AdviceEvaluation:
    right = float(np.mean(tally.right)) if tally.right else float("nan")
    if not tally.excess:
        nan = float("nan")
        return AdviceEvaluation(name, right, len(tally.right), nan, nan, nan, 0)
    excess, chance = np.array(tally.excess), float(np.mean(tally.chance))
    captured = 1 - float(np.mean(tally.ratio)) / chance if chance > 0 else float("nan")
    return AdviceEvaluation(
        name, right, len(tally.right), float(excess.mean()), float(excess.max()), captured, len(tally.excess), chance
    )


def _noise(data: xr.Dataset, knobs: list[str], load: Mapping[str, float]) -> float:
    """Smallest difference of log errors beyond the noise between seeds at a load; 0 with one dense seed."""
    values = seed_means(data["test_error"], knobs).sel(load)
    if values.sizes["dense_seed"] < 2:
        return 0.0
    logs = np.log(values.transpose(..., "dense_seed").values.clip(ERROR_FLOOR))
    spread = logs[np.isfinite(logs).all(-1)].var(-1, ddof=1)
    return MIN_EXCESS_DEVIATIONS * float(np.sqrt(2 * np.median(spread))) if len(spread) else 0.0


def pooled(parts: Iterable[Sequence[AdviceEvaluation]]) -> list[AdviceEvaluation]:
    """Pool the evaluations on several grids; advisers and baselines that do not apply to all of them are dropped."""
    parts = list(parts)
    by_name = [{each.name: each for each in part} for part in parts]
    shared = [each.name for each in parts[0] if all(each.name in part for part in by_name)]
    return [_together([part[name] for part in by_name]) for name in shared]


def _together(parts: Sequence[AdviceEvaluation]) -> AdviceEvaluation:
    parts = [each for each in parts if each.choices or each.cases] or list(parts)
    cases, choices = sum(each.cases for each in parts), sum(each.choices for each in parts)
    right = sum(each.right * each.cases for each in parts if each.cases) / cases if cases else float("nan")
    if not choices:
        return dataclasses.replace(parts[0], right=right, cases=cases)
    mean, chance = (
        sum(value * each.choices for value, each in zip(values, parts, strict=True)) / choices
        for values in ([each.mean for each in parts], [each.chance for each in parts])
    )
    worst = max(each.worst for each in parts)
    if not chance > 0:
        return AdviceEvaluation(parts[0].name, right, cases, mean, worst, float("nan"), choices, chance)
    lost = sum((1 - each.captured) * each.chance * each.choices for each in parts if each.chance > 0) / choices
    return AdviceEvaluation(parts[0].name, right, cases, mean, worst, 1 - lost / chance, choices, chance)


def _without(data: xr.Dataset, load: Mapping[str, float]) -> RegimeMap | None:
    """A map without a density (or value of the last load); None at the two ends, or if too few remain."""
    name, value = list(load.items())[-1]
    left = data.sel({name: [other for other in data[name].values.tolist() if other != value]})
    inside = left.sizes[name] > 1 and left[name].min() < value < left[name].max()
    return RegimeMap(left) if inside else None


def _settings(m: MeasuredGrid) -> list[dict[str, float]]:
    knobs = m.knob_axes
    return [
        dict(zip((axis.name for axis in knobs), each, strict=True))
        for each in itertools.product(*(axis.values for axis in knobs))
    ]


def _loads(m: MeasuredGrid) -> Iterator[dict[str, float]]:
    loads = m.load_axes
    for each in itertools.product(*(axis.values for axis in loads)):
        yield dict(zip((axis.name for axis in loads), each, strict=True))


def _errors(m: MeasuredGrid, load: Mapping[str, float]) -> Numbers:
    """Mean test errors (temperatures,) at a load."""
    values = seed_means(m.data["test_error"], m.knobs).mean("dense_seed").sel(load)
    return np.asarray(values.transpose(*m.knobs).values.reshape(-1), dtype=float)


def _dense(m: MeasuredGrid, load: Mapping[str, float]) -> Numbers:
    """Mean test errors (temperatures,) before pruning; NaN if unknown."""
    count = int(np.prod(m.shape[: len(m.knobs)]))
    if "dense_test_error" not in m.data:
        return np.full(count, np.nan)
    values = m.data["dense_test_error"]
    values = values.sel({name: value for name, value in load.items() if name in values.dims})
    rest = [dim for dim in values.dims if dim not in m.knobs]
    return np.asarray(values.mean(rest).transpose(*m.knobs).values.reshape(-1), dtype=float)
