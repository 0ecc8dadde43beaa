"""How good is the advice? Advisers and controls held against test errors that they have not seen."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.regime_map import ADVISERS
from regimes.regime_map.baselines import CONTROLS, heat_of
from regimes.regime_map.cell_stats import seed_means
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers
from regimes.regime_map.regime_map import RegimeMap

SEEING = ("error", "fitted", "joint")  # advisers that look at test errors
MATTERS = 0.1  # of the error: a temperature that is worse than the best by less is no case for a direction,
LEAST = 1e-4  # of error, below which ratios are not told apart
SURE = 2.0  # nor one that is worse by less than so many standard deviations of the difference of two seeds' errors


@dataclass(frozen=True)
class AdviceEvaluation:
    """How a way to choose did, over densities, seeds and places to stand.

    Attributes:
        name: of the adviser or control.
        right: share of right directions among the temperatures that are worse than the best beyond noise: by more than
            10 % of its error and two standard deviations of the difference of two seeds' errors at that density; NaN
            for controls that know no direction.
        cases: how many those are.
        mean, worst: test error of the temperature selected, above the lowest of that density (the oracle's).
        captured: share of what the oracle gains over a temperature at random that was gained: 1 the oracle, 0 chance.
            Of log errors: a rare collapse would decide over means of errors, and low densities over high ones.
        choices: how many selections.
        chance: mean log error of a temperature at random above the oracle's.
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
    data: xr.Dataset, advisers: Iterable[str] = tuple(ADVISERS), leave_density: bool = False
) -> list[AdviceEvaluation]:
    """Hold advisers and controls against the test errors of a grid.

    Leave-one-dense-seed-out: the map is made of all dense seeds but one, and judged on the errors of that one. With one
    dense seed, its own errors judge, at the densities between the ends; advisers that look at test errors then have
    each left out.

    Args:
        data: a grid with ``test_error``.
        advisers: names in `ADVISERS` or import paths.
        leave_density: leave out each density too when it is asked for; the two ends then have no answer.

    Raises:
        UserError: the grid has no test errors.
    """
    if "test_error" not in data:
        raise UserError("advice is judged by test errors, and this grid has none")
    tallies: dict[str, _Tally] = {}
    seeds = data["dense_seed"].values.tolist() if data.sizes.get("dense_seed", 1) > 1 else [None]
    for seed in seeds:
        known = data if seed is None else data.sel(dense_seed=[each for each in seeds if each != seed])
        unseen = data if seed is None else data.sel(dense_seed=[seed])
        _hold(data, known, unseen, advisers, leave_density, tallies)
    return [_summary(name, tally) for name, tally in tallies.items()]


def _hold(
    data: xr.Dataset,
    known: xr.Dataset,
    unseen: xr.Dataset,
    advisers: Iterable[str],
    leave: bool,
    tallies: dict[str, _Tally],
) -> None:
    """Ask a map of what is known, and hold the answers against what was unseen."""
    whole, there = RegimeMap(known), MeasuredGrid.of(unseen)
    own = unseen is known
    settings = _settings(there)
    for load in _loads(there):
        errors = _errors(there, load)
        if not np.isfinite(errors).all():
            continue
        without = _without(known, load["density"]) if leave or own else whole
        if without is None:
            continue  # the same densities for all
        dense, least = _dense(there, load), _noise(data, there.knobs, load)
        for name, control in CONTROLS.items():
            cost = control(there, dense)
            if cost is not None:
                _note(tallies, name, errors, int(cost.argmin()))
        _directions(tallies, "always colder", errors, heat_of(there), ["colder"] * len(errors), least)
        for name in advisers:
            chart = without if leave or name in SEEING else whole
            _ask(tallies, name, chart, load, settings, errors, heat_of(there), least)


def _ask(
    tallies: dict[str, _Tally],
    name: str,
    chart: RegimeMap,
    load: Mapping[str, float],
    settings: Sequence[Mapping[str, float]],
    errors: Numbers,
    heat: Numbers,
    least: float,
) -> None:
    more = {key: value for key, value in load.items() if key != "density"}
    chosen = chart.select(load["density"], more, name).selected
    _note(tallies, name, errors, list(settings).index(chosen))
    said = [chart.advise(load["density"], {**each, **more}, name).direction for each in settings]
    _directions(tallies, name, errors, heat, said, least)


def _note(tallies: dict[str, _Tally], name: str, errors: Numbers, chosen: int) -> None:
    tally = tallies.setdefault(name, _Tally([], [], [], []))
    tally.excess.append(float(errors[chosen] - errors.min()))
    logs = np.log(errors.clip(LEAST))
    tally.ratio.append(float(logs[chosen] - logs.min()))
    tally.chance.append(float((logs - logs.min()).mean()))


def _directions(
    tallies: dict[str, _Tally], name: str, errors: Numbers, heat: Numbers, said: Sequence[str], least: float
) -> None:
    tally = tallies.setdefault(name, _Tally([], [], [], []))
    best = int(errors.argmin())
    for here, word in enumerate(said):
        if abs(heat[best] - heat[here]) < 1e-9:
            continue  # as hot, by other knobs
        if errors[here] > (1 + MATTERS) * errors[best] and np.log(errors[here] / max(errors[best], LEAST)) > least:
            tally.right.append(word == ("hotter" if heat[best] > heat[here] else "colder"))


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
    """How far apart the log errors of two temperatures have to be at a load; 0 with one dense seed."""
    values = seed_means(data["test_error"], knobs).sel(load)
    if values.sizes["dense_seed"] < 2:
        return 0.0
    logs = np.log(values.transpose(..., "dense_seed").values.clip(LEAST))
    spread = logs[np.isfinite(logs).all(-1)].var(-1, ddof=1)
    return SURE * float(np.sqrt(2 * np.median(spread))) if len(spread) else 0.0


def pooled(parts: Iterable[Sequence[AdviceEvaluation]]) -> list[AdviceEvaluation]:
    """Judgements on several grids as one; of those ways to choose that apply to all of them."""
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


def _without(data: xr.Dataset, density: float) -> RegimeMap | None:
    """A map that has not seen a density; None where it is an end, or what is left cannot be mapped."""
    left = data.sel(density=[each for each in data["density"].values.tolist() if each != density])
    inside = left.sizes["density"] > 1 and left["density"].min() < density < left["density"].max()
    return RegimeMap(left) if inside else None


def _settings(m: MeasuredGrid) -> list[dict[str, float]]:
    knobs = m.axes[: len(m.knobs)]
    return [
        dict(zip((axis.name for axis in knobs), each, strict=True))
        for each in itertools.product(*(axis.values for axis in knobs))
    ]


def _loads(m: MeasuredGrid) -> Iterator[dict[str, float]]:
    loads = m.axes[len(m.knobs) :]
    for each in itertools.product(*(axis.values for axis in loads)):
        yield dict(zip((axis.name for axis in loads), each, strict=True))


def _errors(m: MeasuredGrid, load: Mapping[str, float]) -> Numbers:
    """(temperatures,) mean test errors at a load."""
    values = seed_means(m.data["test_error"], m.knobs).mean("dense_seed").sel(load)
    return np.asarray(values.transpose(*m.knobs).values.reshape(-1), dtype=float)


def _dense(m: MeasuredGrid, load: Mapping[str, float]) -> Numbers:
    """(temperatures,) mean test errors before pruning; NaN where not known."""
    count = int(np.prod(m.shape[: len(m.knobs)]))
    if "dense_test_error" not in m.data:
        return np.full(count, np.nan)
    values = m.data["dense_test_error"]
    values = values.sel({name: value for name, value in load.items() if name in values.dims})
    rest = [dim for dim in values.dims if dim not in m.knobs]
    return np.asarray(values.mean(rest).transpose(*m.knobs).values.reshape(-1), dtype=float)
