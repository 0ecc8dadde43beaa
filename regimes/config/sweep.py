"""Models of a sweep file, one for each of its tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict

from regimes.config.discovery import Pressure
from regimes.config.recipe import Count, Flag, Name, NonNegative, Recipe, Section
from regimes.knobs import KNOBS, Knob, Value
from regimes.landscape import METRICS
from regimes.pruners import DISCOVERED, STRUCTURED_PRUNERS
from regimes.registry import lookup

MAX_ROUNDS = 100  # each round's stages hold those of the round before, in as many nested objects
DEFAULT_ROUNDS = {"iterative": 3, "gradual": 10}  # of each pruning schedule
Density = Annotated[float, Strict(), Field(gt=0, le=1)]
Width = Annotated[int, Strict(), Field(ge=1)] | Annotated[float, Strict(), Field(gt=0)]
Temperature = Mapping[str, Value]  # {knob: value}, one point of the temperature grid
Size = Mapping[str, int | float]  # {"width": value}; {} if width does not vary


class Named(Section):
    """A name in a registry, or an import path, and its options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


class LoadConfig(Section):
    """The load axes (density or nu, and width) and the pruning method.

    Attributes:
        density: fractions of the prunable weights kept; empty with ``pruner = "discovered"``.
        nu: pressures of discovery, the load axis with ``pruner = "discovered"``.
        width: values of the model's ``width`` option, each with its own dense networks; empty: the width is fixed.
        pruner, allocation: names or import paths.
        schedule: "one-shot"; "iterative": ``rounds`` steps of equal ratio, each followed by a full retraining;
            "gradual": ``rounds`` steps of decreasing size, each followed by ``1 / rounds`` of the retraining epochs at
            the initial learning rate.
        rounds: number of pruning rounds; None: 3 for "iterative", 10 for "gradual".
        rewind: epoch of the dense training to whose weights the kept weights return before retraining; 0: initial
            weights; None: no rewinding.
        embeddings: whether the weights of embeddings are prunable, too.
        discover: the other options of the pressure; its own ``nu`` is ignored.
    """

    density: tuple[Density, ...] = ()
    nu: tuple[NonNegative, ...] = ()
    width: tuple[Width, ...] = ()
    pruner: str = "magnitude"
    allocation: str = "uniform"
    schedule: Literal["one-shot", "iterative", "gradual"] = "one-shot"
    rounds: Annotated[int, Strict(), Field(ge=2, le=MAX_ROUNDS)] | None = None
    rewind: Annotated[int, Strict(), Field(ge=0)] | None = None
    embeddings: Flag = False
    discover: Pressure = Pressure()

    @property
    def structured(self) -> bool:
        """Whether whole channels are removed, not single weights."""
        return self.pruner in (*STRUCTURED_PRUNERS, DISCOVERED)

    @property
    def axis(self) -> tuple[str, tuple[float, ...]]:
        """Name and values of the load axis other than width."""
        return ("nu", self.nu) if self.pruner == DISCOVERED else ("density", self.density)

    def pressures(self) -> list[Pressure]:
        """Return one pressure for every nu."""
        return [self.discover.model_copy(update={"nu": nu}) for nu in self.nu]

    def path(self, density: float) -> tuple[float, ...]:
        """Return the densities of the pruning rounds that lead to ``density``, itself the last.

        Iterative: ``d^(k/n)``. Gradual: ``d + (1-d) (1-k/n)^3`` (Zhu, Gupta 2017, arXiv 1710.01878).
        """
        if self.schedule == "one-shot":
            return (density,)
        count = self.rounds or DEFAULT_ROUNDS[self.schedule]
        if self.schedule == "iterative":
            earlier = [density ** (k / count) for k in range(1, count)]
        else:
            earlier = [density + (1 - density) * (1 - k / count) ** 3 for k in range(1, count)]
        return (*earlier, density)

    def recipe_between_rounds(self, retrain: Recipe) -> Recipe:
        """Return the retraining recipe of all rounds but the last."""
        if self.schedule != "gradual":
            return retrain
        epochs = max(1, retrain.epochs // (self.rounds or DEFAULT_ROUNDS["gradual"]))
        return retrain.model_copy(update={"epochs": epochs, "schedule": "constant"})


class Checkpoint(Section):
    """A trained dense network: its file, the knob values of its training, and the number of its seed."""

    model_config = ConfigDict(frozen=True, extra="allow")

    path: str
    dense_seed: Annotated[int, Strict(), Field(ge=0)] = 0

    @property
    def knobs(self) -> dict[str, Any]:
        """{knob: value} of the training."""
        return dict(self.model_extra or {})


class DenseConfig(Section):
    """Checkpoints that replace the dense training."""

    checkpoints: Annotated[tuple[Checkpoint, ...], Field(min_length=1)]


class MeasureConfig(Section):
    """Metrics to measure, and tables of their options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    metrics: tuple[str, ...] = ("error", "lmc", "cka")

    def options(self, table: str) -> dict[str, Any]:
        """Return the options given in a metric's table."""
        return dict((self.model_extra or {}).get(table, {}))


class Sweep(Section):
    """A sweep with all defaults filled in.

    Attributes:
        name: name of the run; the default folder is ``runs/NAME``.
        data, model: names and options.
        recipe: recipe of the dense networks, before a knob changes it.
        retrain: recipe of the pruned networks, the same at every temperature.
        temperature: {knob: values}; several knobs form a grid.
        points: settings {knob or field of the recipe: value} listed one by one, as those of a search are, in place of
            the grid of ``temperature``.
        load: load axes and pruning method.
        dense: checkpoints that replace the dense training; None: dense networks are trained.
        measure: metrics and their options.
        dense_seeds: dense networks at each temperature.
        retrain_seeds: retrained copies of each pruned network; pairs are formed among them.
    """

    name: Name
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
    points: tuple[dict[str, Value], ...] = ()

    @cached_property
    def knobs(self) -> dict[str, Knob]:
        """The knobs by their name in the file."""
        return {name: lookup(KNOBS, name, "knob") for name in self.temperature}

    def temperatures(self) -> Iterator[Temperature]:
        """Iterate over the points of the temperature grid, in the file's order, or over ``points``."""
        if self.points:
            yield from self.points
            return
        for values in itertools.product(*self.temperature.values()):
            yield dict(zip(self.temperature, values, strict=True))

    def sizes(self) -> list[Size]:
        """Return every width of the load axis, in the file's order; one empty size if width does not vary."""
        return [{"width": width} for width in self.load.width] or [{}]

    def dense_recipe(self, temperature: Temperature) -> Recipe:
        """Return the dense recipe at one temperature."""
        changes: dict[str, Any] = {}
        for name, value in temperature.items():
            knob = self.knobs.get(name) or (lookup(KNOBS, name, "knob") if name in KNOBS else None)
            changes |= knob.changes(self.recipe, value) if knob else {name: value}
        return self.recipe.model_copy(update=changes)

    def checkpoint(self, temperature: Temperature, dense_seed: int) -> str:
        """Return the checkpoint file of a temperature and seed; requires ``dense``."""
        assert self.dense is not None
        (path,) = (
            checkpoint.path
            for checkpoint in self.dense.checkpoints
            if checkpoint.dense_seed == dense_seed
            and all(checkpoint.knobs[name] == value for name, value in temperature.items())
        )
        return path

    def count_stages(self) -> int:
        """Return the number of stages, before duplicates are removed, without listing them."""
        copies, load = self.retrain_seeds, self.load
        subjects = [lookup(METRICS, name, "metric").subject for name in self.measure.metrics]
        measured = sum(copies if each == "model" else math.comb(copies, 2) for each in subjects)
        rounds = 1 if load.schedule == "one-shot" else load.rounds or DEFAULT_ROUNDS[load.schedule]
        rewound = bool(load.rewind) and load.axis[0] == "density"
        cell = rewound + 2 * (rounds - 1) + 1 + copies + measured
        settings = len(self.points) or math.prod(map(len, self.temperature.values()))
        return len(self.sizes()) * settings * self.dense_seeds * (1 + len(load.axis[1]) * cell)

    def pairs(self) -> list[tuple[int, int]]:
        """Return all pairs of retrain seeds within one dense seed."""
        return list(itertools.combinations(range(self.retrain_seeds), 2))
