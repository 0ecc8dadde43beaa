"""The ladder: proxies from cheap to dear, the full network last, with what each costs in measured seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from regimes.config.recipe import Recipe
from regimes.experiment.context import RunContext
from regimes.experiment.engine_selection import EngineChoice, engine_of

PAYS = 0.67  # of the time one by one: stacked proxies are worth more than what one result could stop


@dataclass(frozen=True)
class Fidelity:
    """One kind of network that a trial is trained on.

    Attributes:
        density: that was asked for; 1: the full network.
        kept: fraction of the prunable weights that it has.
        context: makes its networks.
        epochs: of its training.
        choice: engine that trains it, and networks at once.
        seconds: of a training step per image and network, with that engine.
        alone: the same, trained one by one.
        shift: {field of a recipe: factor} by which a trial's values are multiplied here.
    """

    density: float
    kept: float
    context: RunContext = field(repr=False)
    epochs: int
    choice: EngineChoice
    seconds: float
    alone: float
    shift: Mapping[str, float] = field(default_factory=dict)

    @property
    def together(self) -> int:
        """How many climb on at once: as many as stack where that pays, else one, so that its result can stop others."""
        return self.choice.lanes if self.seconds < PAYS * self.alone else 1

    def lanes_for(self, networks: int) -> int:
        """Lanes of a fleet of so many networks, idle ones included."""
        return engine_of(self.choice.engine).slots(networks, self._any)

    @cached_property
    def _any(self) -> nn.Module:
        """One of its networks, for what weights do not matter to: often asked about, and pruning takes long."""
        return self.context.new_model(seed=0)

    def engine(self, networks: int) -> str:
        """What trains so many networks fastest: together, idle lanes included, or one by one."""
        if self.choice.lanes == 1:
            return self.choice.engine
        together = self.lanes_for(networks) * self.seconds
        return self.choice.engine if together < networks * self.alone else "eager"

    def recipe(self, recipe: Recipe) -> Recipe:
        """A trial's recipe on this rung."""
        moved = {name: getattr(recipe, name) * factor for name, factor in self.shift.items()}
        return recipe.model_copy(update={**moved, "epochs": self.epochs, "stop": None})


@dataclass(frozen=True)
class Segment:
    """A part of a training that ends with a report.

    Attributes:
        rung: number of its rung.
        start, stop: epochs of the rung's training.
        step: that the study is told: the cost so far in units of the first stretch's, at least one more than before.
        cost: so far, as a share of a full training.
    """

    rung: int
    start: int
    stop: int
    step: int
    cost: float


@dataclass(frozen=True)
class Ladder:
    """Rungs from cheap to dear, the full network last.

    Attributes:
        rungs: as climbed.
        stretches: of all rungs, in order.
        seconds: that finding proxies and timing them took.
    """

    rungs: tuple[Fidelity, ...]
    stretches: tuple[Segment, ...]
    seconds: float = 0.0

    @property
    def costs(self) -> list[float]:
        """Of each rung's training, as a share of a full one, in measured seconds."""
        return [_cost(rung, self.rungs[-1]) for rung in self.rungs]

    def facts(self) -> list[dict[str, Any]]:
        """The rungs as plain data."""
        return [
            {
                "density": rung.density,
                "kept": rung.kept,
                "epochs": rung.epochs,
                "engine": rung.choice.engine,
                "lanes": rung.choice.lanes,
                "step_seconds_per_image": rung.seconds,
                "cost": cost,
            }
            for rung, cost in zip(self.rungs, self.costs, strict=True)
        ]


def ladder_of(
    rungs: Sequence[Fidelity], reports: Sequence[float], seconds: float = 0.0, proxy_reports: Sequence[float] = ()
) -> Ladder:
    """A ladder of rungs; the full network is reported on its way too, at shares of its epochs."""
    stretches: list[Segment] = []
    spent, unit, step = 0.0, 0.0, 0
    for number, rung in enumerate(rungs):
        shares = (*(reports if number == len(rungs) - 1 else proxy_reports), 1.0)
        stops = sorted({max(1, round(share * rung.epochs)) for share in shares})
        cost = _cost(rung, rungs[-1])
        for start, stop in zip([0, *stops], stops, strict=False):
            so_far = spent + cost * stop / rung.epochs
            unit = unit or so_far
            step = max(step + 1, round(so_far / unit))
            stretches.append(Segment(number, start, stop, step, so_far))
        spent += cost
    return Ladder(tuple(rungs), tuple(stretches), seconds)


def _cost(rung: Fidelity, full: Fidelity) -> float:
    return rung.seconds * rung.epochs / (full.seconds * full.epochs)
