"""The sweep: a table of a TOML file each, and what they mean together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict

from regimes.config.discovery import Pressure
from regimes.config.recipe import Count, NonNegative, Recipe, Section
from regimes.knobs import KNOBS, Knob, Value
from regimes.pruners import DISCOVERED, STRUCTURED
from regimes.registry import load

ROUNDS = {"iterative": 3, "gradual": 10}
Density = Annotated[float, Strict(), Field(gt=0, le=1)]
Width = Annotated[int, Strict(), Field(ge=1)] | Annotated[float, Strict(), Field(gt=0)]
Temperature = Mapping[str, Value]  # {knob: value}, one point of the grid of temperatures
Size = Mapping[str, int | float]  # {"width": value}, one point of the load axes beside density; {} without one


class Named(Section):
    """A name in a registry (or an import path) and its options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Every key beside the name."""
        return dict(self.model_extra or {})


class LoadConfig(Section):
    """The load axes: which densities, and how networks are pruned to them; which widths, where those vary.

    Attributes:
        density: fractions of the prunable weights kept; none where networks are discovered.
        nu: pressures under which networks are discovered, with ``pruner = "discovered"``: the load-like knob then.
        width: values of the model's option of that name, each with dense networks of its own; none: it stays.
        pruner, allocation: names or import paths.
        schedule: "one-shot"; "iterative": in ``rounds`` steps of one ratio, the network retrained by the recipe after
            each (three); "gradual": in ``rounds`` steps that get smaller, a share of the recipe's epochs at its first
            learning rate after each (ten).
        rounds: of a schedule; None: as said there.
        rewind: the dense epoch whose weights the survivors go back to before they are retrained; 0: the initial ones;
            None: they stay as they are.
        discover: the rest of the pressure; its own ``nu`` does not count.
    """

    density: tuple[Density, ...] = ()
    nu: tuple[NonNegative, ...] = ()
    width: tuple[Width, ...] = ()
    pruner: str = "magnitude"
    allocation: str = "uniform"
    schedule: Literal["one-shot", "iterative", "gradual"] = "one-shot"
    rounds: Annotated[int, Strict(), Field(ge=2, le=1000)] | None = None
    rewind: Annotated[int, Strict(), Field(ge=0)] | None = None
    discover: Pressure = Pressure()

    @property
    def structured(self) -> bool:
        """Whether whole channels leave, rather than single weights."""
        return self.pruner in (*STRUCTURED, DISCOVERED)

    @property
    def axis(self) -> tuple[str, tuple[float, ...]]:
        """The load axis that is not width: its name and values."""
        return ("nu", self.nu) if self.pruner == DISCOVERED else ("density", self.density)

    def pressures(self) -> list[Pressure]:
        """One for every nu."""
        return [self.discover.model_copy(update={"nu": nu}) for nu in self.nu]

    def path(self, density: float) -> tuple[float, ...]:
        """The densities on the way to one, itself the last.

        Iterative: ``d^(k/n)``. Gradual: ``d + (1-d) (1-k/n)^3`` (Zhu, Gupta 2017, arXiv 1710.01878).
        """
        if self.schedule == "one-shot":
            return (density,)
        count = self.rounds or ROUNDS[self.schedule]
        if self.schedule == "iterative":
            way = [density ** (k / count) for k in range(1, count)]
        else:
            way = [density + (1 - density) * (1 - k / count) ** 3 for k in range(1, count)]
        return (*way, density)

    def between(self, retrain: Recipe) -> Recipe:
        """The recipe after each round but the last."""
        if self.schedule != "gradual":
            return retrain
        epochs = max(1, retrain.epochs // (self.rounds or ROUNDS["gradual"]))
        return retrain.model_copy(update={"epochs": epochs, "schedule": "constant"})


class Checkpoint(Section):
    """A dense network that is trained already: its file, the knobs' values it was trained at, its seed's number."""

    model_config = ConfigDict(frozen=True, extra="allow")

    path: str
    dense_seed: Annotated[int, Strict(), Field(ge=0)] = 0

    @property
    def knobs(self) -> dict[str, Any]:
        """{knob: value}."""
        return dict(self.model_extra or {})


class DenseConfig(Section):
    """Where dense networks come from, when they are not to be trained."""

    checkpoints: Annotated[tuple[Checkpoint, ...], Field(min_length=1)]


class MeasureConfig(Section):
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
        dense: checkpoints that stand in for training; None: dense networks are trained.
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
    load: LoadConfig
    measure: MeasureConfig
    dense: DenseConfig | None = None
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

    def sizes(self) -> list[Size]:
        """Every width of the load axis, in the file's order; one empty size where width does not vary."""
        return [{"width": each} for each in self.load.width] or [{}]

    def dense_recipe(self, temperature: Temperature) -> Recipe:
        """The dense recipe at one temperature."""
        changes: dict[str, Any] = {}
        for name, value in temperature.items():
            changes |= self.knobs[name].changes(self.recipe, value)
        return self.recipe.model_copy(update=changes)

    def checkpoint(self, temperature: Temperature, dense_seed: int) -> str:
        """The file of the network trained at a temperature; for sweeps with ``dense`` only."""
        assert self.dense is not None
        (found,) = (
            each.path
            for each in self.dense.checkpoints
            if each.dense_seed == dense_seed and all(each.knobs[name] == value for name, value in temperature.items())
        )
        return found

    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of retrain seeds, within one dense seed."""
        return list(itertools.combinations(range(self.retrain_seeds), 2))
