"""Decisions that a regime map makes in a search: densities, first fidelity of a trial, SAM rho, deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regimes.config.hpo import Dimension
from regimes.config.recipe import Recipe
from regimes.config.sweep import Named
from regimes.errors import OutsideRange, UserError
from regimes.experiment.store import Store
from regimes.hpo.fidelities import Ladder
from regimes.models import BUILDER_ARGUMENTS, MODELS
from regimes.record.grid import read_grid
from regimes.regime_map.regime_map import RegimeMap
from regimes.regime_map.results import DensityTrust
from regimes.registry import lookup, with_defaults

MIN_RHO_PROBABILITY = 0.05  # posterior probability of being selected from which a rho is in the search range
DISCONNECTED_REGIME = "I"  # networks retrained from one pruned network end in different basins


@dataclass(frozen=True)
class MapGuidance:
    """Regime map used by a search.

    Attributes:
        chart: the map.
        name: path of the run or grid.
        seconds: seconds spent on making the map, if it was made for this search.
    """

    chart: RegimeMap
    name: str
    seconds: float = 0.0
    _regimes: dict[tuple[Any, ...], float] = field(default_factory=dict, repr=False)

    def densities(self) -> list[DensityTrust]:
        """Return the rank fidelity of every measured density below 1; see `RegimeMap.rungs`."""
        return [each for each in self.chart.rungs() if each.density < 1]

    def start(self, ladder: Ladder, recipe: Recipe) -> tuple[int, str]:
        """Return the index of the fidelity on which a trial starts, and the reason.

        Densities at which the trial's setting is in regime I are skipped: there, networks of one setting differ so much
        that one of them says little about it. Outside the measured range the trial starts on the cheapest fidelity.
        """
        for number, rung in enumerate(ladder.rungs[:-1]):
            try:
                p_disconnected = self._p_disconnected(rung.density, recipe)
            except OutsideRange:
                return 0, "outside the range of the map"
            if p_disconnected <= 0.5:
                sure = f"probability {1 - p_disconnected:.2f}"
                return number, f"not in regime {DISCONNECTED_REGIME} at density {rung.density:g} ({sure})"
        return len(ladder.rungs) - 1, f"in regime {DISCONNECTED_REGIME} at every proxy density: only the full network"

    def _p_disconnected(self, density: float, recipe: Recipe) -> float:
        """Probability that a setting is in regime I at a density."""
        at = self.map_coordinates(recipe)
        key = (density, *sorted(at.items()))
        if key not in self._regimes:
            self._regimes[key] = self.chart.regimes(density, at)[DISCONNECTED_REGIME]
        return self._regimes[key]

    def map_coordinates(self, recipe: Recipe) -> dict[str, float]:
        """Return a recipe's value for each knob of the map.

        Raises:
            UserError: a knob of the map is not a field of `Recipe`.
        """
        for name in self.chart.knobs:
            if name not in Recipe.model_fields:
                raise UserError(f"map {self.name}: its knob '{name}' is not in a recipe; use a map of recipe knobs")
        return {name: float(getattr(recipe, name)) for name in self.chart.knobs}

    def rho(self, density: float, dimension: Dimension, recipe: Recipe) -> tuple[Dimension, float, str] | None:
        """Return the search range of rho, its first value and the reason; None if rho is not a knob of the map.

        In regime I the map selects hotter networks (a larger rho), in II-A colder ones. The range covers what it would
        select with other seeds, and one measured value beyond it on either side.
        """
        if "sam_rho" not in self.chart.knobs or dimension.choices is not None:
            return None
        others = {name: value for name, value in self.map_coordinates(recipe).items() if name != "sam_rho"}
        try:
            choice = self.chart.sam_rho(density, others)
        except OutsideRange:
            return None
        measured = sorted({float(row["sam_rho"]) for row in choice.candidates})
        often = [float(row["sam_rho"]) for row in choice.candidates if row["chosen"] >= MIN_RHO_PROBABILITY]
        first, last = measured.index(min(often)), measured.index(max(often))
        low, high = dimension.ends
        floor, ceiling = measured[max(0, first - 1)], measured[min(len(measured) - 1, last + 1)]
        low, high = max(low, floor), min(high, ceiling)
        if not low < high:
            return None
        best = float(np.clip(choice.selected["sam_rho"], low, high))
        why = f"regime {choice.regime} at density {density:g}: rho {best:g} first, range {low:g} to {high:g}"
        return Dimension(low=low, high=high, log=dimension.log and low > 0), best, why

    def deployment(self, recipe: Recipe) -> dict[str, Any]:
        """Return the smallest measured density at which the pruned winner is expected to be as good as at the largest.

        "As good" means an expected error within the upper 95 % bound at the largest density. The result also has the
        direction in which the map would turn the temperature, and the recipe with which its networks were retrained.
        """
        axis = self.chart.densities
        try:
            advice = {each: self.chart.advise(each, self.map_coordinates(recipe)) for each in sorted(axis) if each < 1}
        except OutsideRange as error:
            return {"density": None, "reason": str(error)}
        rows = {each: found.evidence["here"] for each, found in advice.items()}
        if any("test_error" not in row for row in rows.values()):
            return {"density": None, "reason": "the map has no validation errors"}
        bound = rows[max(rows)]["test_error"]["high"]
        for density, row in rows.items():
            if row["test_error"]["value"] <= bound:
                found = advice[density]
                return {
                    "density": density,
                    "regime": found.regime,
                    "expected_error": row["test_error"]["value"],
                    "direction": found.direction,
                    "target": dict(found.target),
                    "retrain": self._retraining(),
                    "reason": f"expected error within 95 % of that at density {max(rows):g}",
                }
        raise AssertionError  # the largest density is within its own bound

    def _retraining(self) -> dict[str, Any] | None:
        """The retraining recipe of the map's run; None for a grid file."""
        if not Path(self.name).is_dir():
            return None
        retrain: dict[str, Any] = Store(self.name).layout["sweep"]["retrain"]
        return retrain


def open_guidance(path: str | Path, data: Named, model: Named, seconds: float = 0.0) -> MapGuidance:
    """Open the map of a run's folder or a netCDF grid for a search; see `validated`.

    Raises:
        UserError: the map cannot be used, or is of another model or other data.
    """
    path = Path(path)
    chart = RegimeMap(validated(read_grid(path)))
    if path.is_dir():
        _check_same(path, Store(path).layout["sweep"], data, model)
    guidance = MapGuidance(chart, str(path.resolve()), seconds)
    guidance.map_coordinates(Recipe())  # fail now, not after the search
    return guidance


def validated(data: xr.Dataset) -> xr.Dataset:
    """Return a grid with its validation errors in place of the test errors, which a search must not use.

    From a grid without validation errors all errors are removed; it then only gives regimes.
    """
    theirs = {"test_error": "val_error", "dense_test_error": "dense_val_error"}
    if not set(theirs.values()) <= set(data.variables):
        return data.drop_vars(list(theirs), errors="ignore")
    return data.assign({name: data[other] for name, other in theirs.items()})


def _check_same(path: Path, sweep: Mapping[str, Any], data: Named, model: Named) -> None:
    for what, asked, builders in (("data", data, None), ("model", model, MODELS)):
        theirs, ours = Named.model_validate(sweep[what]), asked
        options = []
        for each in (theirs, ours):
            whole = each.options
            if builders is not None:
                whole = with_defaults(lookup(builders, each.name, what), whole, BUILDER_ARGUMENTS)
            options.append({"name": each.name, **whole})
        wrong = [key for key in sorted({*options[0], *options[1]}) if options[0].get(key) != options[1].get(key)]
        if wrong:
            there, here = options
            differences = ", ".join(f"{key} = {there.get(key)!r}, not {here.get(key)!r}" for key in wrong)
            raise UserError(
                f"map {path}: made with another [{what}]: {differences}; use a map of the same {what}, or omit --map"
            )
