"""Fidelities of a search, from the cheapest proxy to the full network, with their measured costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from regimes.config.recipe import Recipe
from regimes.experiment.context import RunContext
from regimes.experiment.engine_selection import EngineChoice, engine_of

MAX_STACKED_TIME_SHARE = 0.67  # time of stacked proxies over one by one, below which stacking beats earlier stopping


@dataclass(frozen=True)
class Fidelity:
    """One kind of network on which trials are trained.

    Attributes:
        density: density asked for; 1 for the full network.
        kept: fraction of the prunable weights that the network has.
        context: run context that makes its networks.
        epochs: epochs of its training.
        choice: engine that trains it, and number of networks trained at once.
        seconds: seconds of a training step per image and network with that engine.
        alone: seconds of a training step per image for a network trained by itself.
        size: options in which its model differs from the full network's, for networks that are no cut proxies.
    """

    density: float
    kept: float
    context: RunContext = field(repr=False)
    epochs: int
    choice: EngineChoice
    seconds: float
    alone: float
    size: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stack_size(self) -> int:
        """Number of trials that continue together: all lanes if stacking pays, else 1 (each result can stop others)."""
        return self.choice.lanes if self.seconds < MAX_STACKED_TIME_SHARE * self.alone else 1

    def lanes_for(self, networks: int) -> int:
        """Return the lanes of a fleet of so many networks, including idle ones."""
        return engine_of(self.choice.engine).slots(networks, self._any)

    @cached_property
    def _any(self) -> nn.Module:
        """One of its networks, cached, for questions that do not depend on the weights."""
        return self.context.new_model(seed=0)

    def engine(self, networks: int) -> str:
        """Return the fastest engine for so many networks: stacked with idle lanes, or one by one."""
        if self.choice.lanes == 1:
            return self.choice.engine
        together = self.lanes_for(networks) * self.seconds
        return self.choice.engine if together < networks * self.alone else "eager"

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return a trial's recipe with this fidelity's epochs."""
        return recipe.model_copy(update={"epochs": self.epochs, "stop": None})


@dataclass(frozen=True)
class Segment:
    """Part of a training between two reports.

    Attributes:
        rung: index of the fidelity.
        start, stop: first and last epoch, of the fidelity's training.
        step: Optuna step of the report: cumulative cost in units of the first segment's cost, strictly increasing.
        cost: cumulative cost as a share of a full training.
    """

    rung: int
    start: int
    stop: int
    step: int
    cost: float


@dataclass(frozen=True)
class Ladder:
    """Fidelities of a search in order of cost, the full network last.

    Attributes:
        rungs: the fidelities.
        stretches: the segments of all fidelities, in order.
        seconds: seconds spent on building and timing the proxies.
    """

    rungs: tuple[Fidelity, ...]
    stretches: tuple[Segment, ...]
    seconds: float = 0.0

    @property
    def costs(self) -> list[float]:
        """Measured cost of each fidelity's training, as a share of a full training."""
        return [_cost(rung, self.rungs[-1]) for rung in self.rungs]

    def facts(self) -> list[dict[str, Any]]:
        """Return the fidelities as plain data, for results."""
        return [
            {
                "density": rung.density,
                "kept": rung.kept,
                "epochs": rung.epochs,
                "engine": rung.choice.engine,
                "lanes": rung.choice.lanes,
                "step_seconds_per_image": rung.seconds,
                "cost": cost,
                **({"size": dict(rung.size)} if rung.size else {}),
            }
            for rung, cost in zip(self.rungs, self.costs, strict=True)
        ]


def ladder_of(
    rungs: Sequence[Fidelity], reports: Sequence[float], seconds: float = 0.0, proxy_reports: Sequence[float] = ()
) -> Ladder:
    """Divide the training of each fidelity into segments.

    Args:
        rungs: the fidelities, cheapest first, the full network last.
        reports: shares of the full network's epochs at which it is also reported before its end.
        seconds: seconds spent on building and timing the proxies.
        proxy_reports: shares of a proxy's epochs at which it is also reported before its end.
    """
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
