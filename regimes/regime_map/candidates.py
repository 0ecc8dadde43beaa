"""Candidate temperatures at one load, with posterior draws of their LMC, CKA and test error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from regimes.regime_map.axes import position
from regimes.regime_map.classification import Regions
from regimes.regime_map.measured_grid import Numbers

POSTERIOR_DRAWS = 400
Settings = tuple[Mapping[str, float], ...]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Candidates:
    """The m candidate temperatures at one load; ``lmc``, ``cka`` and ``error`` are on the scales of `transform_of`.

    Attributes:
        settings: {knob: value} of each candidate.
        places: (m, k) coordinates.
        temperature: (m,) mean coordinate over knobs, 0 coldest, 1 hottest.
        regimes: (m, 3) probabilities of the regimes.
        lmc, cka: (draws, m) posterior draws of the surfaces.
        connected, similar: (draws, m) whether a candidate is in II, and whether colder no longer improves it; the
            borders are sampled too.
        error: (draws, m) posterior draws of the log test error; None if the grid has no test errors.
        current: index of the current temperature; None if there is none.
        memory: cache of results that do not depend on the current temperature, see `once_per_load`.
    """

    settings: Settings
    places: Numbers
    temperature: Numbers
    regimes: Numbers
    lmc: Numbers
    cka: Numbers
    connected: NDArray[np.bool_]
    similar: NDArray[np.bool_]
    error: Numbers | None
    current: int | None
    memory: dict[Callable[..., Any], Any] = field(default_factory=dict)

    def directions_to(self, chosen: int) -> dict[str, str]:
        """Return the direction of each knob from the current temperature to a candidate: "hotter", "colder", "stay"."""
        assert self.current is not None
        step = self.places[chosen] - self.places[self.current]
        words = ("stay" if abs(each) < 1e-9 else "hotter" if each > 0 else "colder" for each in step)
        return dict(zip(self.settings[0], words, strict=False))


def once_per_load(function: Callable[Concatenate[Candidates, P], R]) -> Callable[Concatenate[Candidates, P], R]:
    """Cache a function of candidates, whatever the current one; an array that it returns cannot be changed."""

    @functools.wraps(function)
    def remembered(candidates: Candidates, *args: P.args, **kwargs: P.kwargs) -> R:
        if function not in candidates.memory:
            candidates.memory[function] = made = function(candidates, *args, **kwargs)
            for each in made if isinstance(made, tuple) else (made,):
                if isinstance(each, np.ndarray):
                    each.setflags(write=False)
        found: R = candidates.memory[function]
        return found

    return remembered


def candidates_at(
    regions: Regions,
    load: Mapping[str, float],
    at: Mapping[str, float] | None,
    fixed: Mapping[str, float],
) -> Candidates:
    """Return the candidates at a load: every measured temperature, and the current one.

    Args:
        regions: the regions of a classified grid.
        load: {load: value}, such as {"density": 0.1}; values between measured ones are interpolated.
        at: {knob: value} of the current temperature, added to the candidates if it is not measured; None if there is
            none.
        fixed: {knob: value} of knobs to hold fixed.

    Raises:
        UserError: a knob or load is missing or unknown.
        OutsideRange: a value is outside the measured range.
    """
    m = regions.grid
    knobs = m.knob_axes
    settings: list[dict[str, float]] = [{}]
    for axis in knobs:
        values = (fixed[axis.name],) if axis.name in fixed else axis.values
        settings = [{**each, axis.name: value} for each in settings for value in values]
    current = None
    if at is not None:
        position(m.axes, {**at, **load})  # raises if a value is missing
        setting = {axis.name: axis.nearest(float(at.get(axis.name, axis.values[0]))) for axis in knobs}
        if setting not in settings:
            settings.append(setting)
        current = settings.index(setting)
    places = np.stack([position(m.axes, {**each, **load}) for each in settings])
    random = np.random.default_rng(0)
    drawn = {name: m.surface(name).sample(places, POSTERIOR_DRAWS, random) for name in ("lmc", "cka")}
    connected, similar = regions.sample(places, drawn["lmc"])
    error = m.surface("test_error").sample(places, POSTERIOR_DRAWS, random) if m.has_test_error else None
    return Candidates(
        tuple(settings),
        places,
        places[:, : len(knobs)].mean(1),
        regions.probabilities(places),
        drawn["lmc"],
        drawn["cka"],
        connected,
        similar,
        error,
        current,
    )
