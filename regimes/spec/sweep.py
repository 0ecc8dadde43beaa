"""The sweep: a table of a TOML file each, and what they mean together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import ConfigDict, Field, Strict

from regimes.knobs import KNOBS, Knob, Value
from regimes.registry import load
from regimes.spec.recipe import Count, Recipe, Section

Density = Annotated[float, Strict(), Field(gt=0, le=1)]
Temperature = Mapping[str, Value]  # {knob: value}, one point of the grid of temperatures


class Named(Section):
    """A name in a registry (or an import path) and its options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Every key beside the name."""
        return dict(self.model_extra or {})


class Load(Section):
    """The load axis: which densities, and how networks are pruned to them."""

    density: tuple[Density, ...]
    pruner: str = "magnitude"
    allocation: str = "uniform"


class Measure(Section):
    """Which metrics, and tables of their options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    metrics: tuple[str, ...] = ("error", "lmc", "cka")

    def options(self, table: str) -> dict[str, Any]:
        """The options given for a metric's table."""
        return dict((self.model_extra or {}).get(table, {}))


class Sweep(Section):
    """A whole sweep, resolved: every default filled in.

    Attributes:
        name: of the run; its folder is ``runs/NAME`` unless told otherwise.
        data, model: which, with options.
        recipe: of the dense networks, before a knob turns it.
        retrain: of the pruned networks: the same in every cell, whatever the temperature.
        temperature: {knob: values}; several knobs make a grid.
        load: densities, pruner, allocation.
        measure: metrics and their options.
        dense_seeds: dense networks per temperature.
        retrain_seeds: retrained copies per pruned network; pairs are formed among them.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    data: Named
    model: Named
    recipe: Recipe
    retrain: Recipe
    temperature: dict[str, tuple[Value, ...]]
    load: Load
    measure: Measure
    dense_seeds: Count = 1
    retrain_seeds: Count = 2

    @cached_property
    def knobs(self) -> dict[str, Knob]:
        """The knobs by the name they have in the file."""
        return {name: load(KNOBS, name, "knob") for name in self.temperature}

    def temperatures(self) -> Iterator[Temperature]:
        """Every point of the grid of temperatures, in the file's order."""
        for values in itertools.product(*self.temperature.values()):
            yield dict(zip(self.temperature, values, strict=True))

    def dense_recipe(self, temperature: Temperature) -> Recipe:
        """The dense recipe at one temperature."""
        changes: dict[str, Any] = {}
        for name, value in temperature.items():
            changes |= self.knobs[name].changes(self.recipe, value)
        return self.recipe.model_copy(update=changes)

    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of retrain seeds, within one dense seed."""
        return list(itertools.combinations(range(self.retrain_seeds), 2))
