"""What the regime map decides in a search: rungs, where a trial starts, the range of SAM's rho, what to deploy."""

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
from regimes.models import GIVEN, MODELS
from regimes.record.grid import read_grid
from regimes.regime_map.regime_map import RegimeMap
from regimes.regime_map.results import DensityTrust as Judged
from regimes.registry import load, with_defaults

CHOSEN = 0.05  # share of what other seeds might have shown in which a rho is chosen, for it to be searched
DISCONNECTED = "I"  # the regime in which pruned networks of one training end in basins of their own


@dataclass(frozen=True)
class MapGuidance:
    """A map, asked on behalf of a search.

    Attributes:
        chart: the map.
        name: where it is from.
        seconds: that making it took, where it was made for this search.
    """

    chart: RegimeMap
    name: str
    seconds: float = 0.0
    _regimes: dict[tuple[Any, ...], float] = field(default_factory=dict, repr=False)

    def judged(self) -> list[Judged]:
        """Every measured density, whether its networks rank training settings as the full one does."""
        return [each for each in self.chart.rungs() if each.density < 1]

    def start(self, ladder: Ladder, recipe: Recipe) -> tuple[int, str]:
        """The rung that a trial starts on, and why: it skips densities at which it stands in regime I.

        There networks of one training setting differ so much from each other that one says little of it. Where the
        map has not measured, it says nothing, and the trial starts on the cheapest rung.
        """
        for number, rung in enumerate(ladder.rungs[:-1]):
            try:
                chance = self._apart(rung.density, recipe)
            except OutsideRange:
                return 0, "outside of what the map has measured"
            if chance <= 0.5:
                sure = f"probability {1 - chance:.2f}"
                return number, f"not in regime {DISCONNECTED} at density {rung.density:g} ({sure})"
        return len(ladder.rungs) - 1, f"in regime {DISCONNECTED} at every density of the ladder: the full network"

    def _apart(self, density: float, recipe: Recipe) -> float:
        """Probability that a setting is in regime I at a density."""
        at = self.here(recipe)
        key = (density, *sorted(at.items()))
        if key not in self._regimes:
            self._regimes[key] = self.chart.regimes(density, at)[DISCONNECTED]
        return self._regimes[key]

    def here(self, recipe: Recipe) -> dict[str, float]:
        """Where a recipe stands on the map's knobs.

        Raises:
            UserError: a knob of the map is no field of a recipe.
        """
        values = recipe.model_dump()
        for name in self.chart.knobs:
            if name not in values:
                raise UserError(f"map {self.name}: its knob '{name}' is not in a recipe; a search cannot stand on it")
        return {name: float(values[name]) for name in self.chart.knobs}

    def rho(self, density: float, dimension: Dimension, recipe: Recipe) -> tuple[Dimension, float, str] | None:
        """The range in which rho is searched, the value to begin with, and why; None where the map does not turn it.

        In regime I the map chooses hotter ones (a larger rho), in II-A colder ones: the range is what it would choose
        with other seeds, and one measured value beyond it to either side.
        """
        if "sam_rho" not in self.chart.knobs or dimension.choices is not None:
            return None
        others = {name: value for name, value in self.here(recipe).items() if name != "sam_rho"}
        try:
            choice = self.chart.sam_rho(density, others)
        except OutsideRange:
            return None
        measured = sorted({float(row["sam_rho"]) for row in choice.candidates})
        often = [float(row["sam_rho"]) for row in choice.candidates if row["chosen"] >= CHOSEN]
        first, last = measured.index(min(often)), measured.index(max(often))
        low, high = dimension.ends
        floor, ceiling = measured[max(0, first - 1)], measured[min(len(measured) - 1, last + 1)]
        low, high = max(low, floor), min(high, ceiling)
        if not low < high:
            return None
        best = float(np.clip(choice.selected["sam_rho"], low, high))
        why = f"regime {choice.regime} at density {density:g}: rho {best:g} chosen, {low:g} to {high:g} searched"
        return Dimension(low=low, high=high, log=dimension.log and low > 0), best, why

    def deployment(self, recipe: Recipe) -> dict[str, Any]:
        """The sparsest measured density at which the winner, pruned, is expected to be as good as at the densest.

        "As good": its expected error lies within the map's 95 % of the densest one's; densities in regime I are out,
        where they are worse. With the direction in which the map would turn the temperature, and how it retrained.
        """
        axis = self.chart.axes[-1].values
        try:
            advice = {each: self.chart.advise(each, self.here(recipe)) for each in sorted(axis) if each < 1}
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
        raise AssertionError  # the densest one is within its own bound

    def _retraining(self) -> dict[str, Any] | None:
        """The recipe by which the map's networks were retrained; None for a map from elsewhere."""
        if not Path(self.name).is_dir():
            return None
        retrain: dict[str, Any] = Store(self.name).layout["sweep"]["retrain"]
        return retrain


def open_guide(path: str | Path, data: Named, model: Named, seconds: float = 0.0) -> MapGuidance:
    """The map of a run's folder or a netCDF grid, for networks of a model on some data; its errors are `validated`.

    Raises:
        UserError: it cannot be used, or is a map of another model or other data.
    """
    path = Path(path)
    chart = RegimeMap(validated(read_grid(path)))
    if path.is_dir():
        _check_same(path, Store(path).layout["sweep"], data, model)
    guide = MapGuidance(chart, str(path.resolve()), seconds)
    guide.here(Recipe())  # or a line now, not after the search
    return guide


def validated(data: xr.Dataset) -> xr.Dataset:
    """A grid with validation errors where its test errors were: what a search decides must not rest on the test split.

    A grid without validation errors is left without errors: its regimes are asked, and no more.
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
                whole = with_defaults(load(builders, each.name, what), whole, GIVEN)
            options.append({"name": each.name, **whole})
        wrong = [key for key in sorted({*options[0], *options[1]}) if options[0].get(key) != options[1].get(key)]
        if wrong:
            said = ", ".join(f"{key} = {options[0].get(key)!r} there, {options[1].get(key)!r} here" for key in wrong)
            raise UserError(
                f"map {path}: is of another [{what}]: {said}; its regimes say nothing of this search: "
                "make one of the same, or leave --map out"
            )
