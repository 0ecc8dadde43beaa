"""Decisions of a regime map in a search for pruned networks: first settings, and the range of SAM rho."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regimes.config.hpo import INTEGERS, Dimension, Hpo
from regimes.errors import OutsideRange
from regimes.hpo.map_guidance import MapGuidance
from regimes.hpo.pruned import DENSITY

RHO = "sam_rho"


@dataclass(frozen=True)
class Decisions:
    """Decisions of a map.

    Attributes:
        space: the search space, with a narrower range of rho if rho is a knob of the map.
        first: parameters of the first trials: at each density the setting that the map selects.
        notes: the decisions in words.
    """

    space: dict[str, Dimension]
    first: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def decide(spec: Hpo, guidance: MapGuidance) -> Decisions:
    """Return what a map decides for the densities that a search is for."""
    assert spec.pruned is not None
    space, first, notes = dict(spec.space), list[dict[str, Any]](), list[str]()
    here = guidance.map_coordinates(spec.recipe)
    ranges: list[tuple[float, float]] = []
    for density in spec.pruned.densities:
        try:
            chosen = guidance.chart.select(density)
            regimes = guidance.chart.regimes(density, here)
        except OutsideRange:
            notes.append(f"density {density:g}: outside the range of the map")
            continue
        likely = max(regimes, key=regimes.__getitem__)
        selected = ", ".join(f"{name} = {value:g}" for name, value in chosen.selected.items())
        notes.append(
            f"density {density:g}: the map puts the recipe's setting in regime {likely} (probability "
            f"{regimes[likely]:.2f}); for this density it selects {selected} (regime {chosen.regime}), tried first"
        )
        params = _params(spec, chosen.selected)
        if params is not None:
            first.append({**params, **({DENSITY: density} if len(spec.pruned.densities) > 1 else {})})
        narrowed = guidance.rho(density, space[RHO], spec.recipe) if RHO in space else None
        if narrowed is not None:
            dimension, _, why = narrowed
            ranges.append(dimension.ends)
            notes.append(why)
    if ranges:
        low, high = min(each[0] for each in ranges), max(each[1] for each in ranges)
        space[RHO] = Dimension(low=low, high=high, log=space[RHO].log and low > 0)
    return Decisions(space, tuple(first), tuple(notes))


def _params(spec: Hpo, selected: Mapping[str, float]) -> dict[str, Any] | None:
    """The recipe's setting with the values that the map selects; None if it lies outside the search space."""
    found: dict[str, Any] = {}
    for name, dimension in spec.space.items():
        value = selected.get(name, getattr(spec.recipe, name))
        if not dimension.contains(value):
            return None
        found[name] = int(value) if name in INTEGERS else float(value)
    return found
