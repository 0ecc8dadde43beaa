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

FULL = "1"  # name of the full training
MAX_STACKED_TIME_SHARE = 0.67  # time of stacked proxies over one by one, below which stacking beats earlier stopping


@dataclass(frozen=True)
class Fidelity:
    """One kind of training of a trial: a network, its training images and its epochs.

    Attributes:
        density: density asked for; 1 for the full network.
        kept: fraction of the prunable weights that the network has.
        context: run context that makes its networks and holds its training images.
        epochs: epochs of its training.
        choice: engine that trains it, and number of networks trained at once.
        seconds: seconds of a training step per image and network with that engine.
        alone: seconds of a training step per image for a network trained by itself.
        size: options in which its model differs from the full network's, for networks that are no cut proxies.
        images: fraction of the training images.
        share: epochs as a fraction of the full training's.
    """

    density: float
    kept: float
    context: RunContext = field(repr=False)
    epochs: int
    choice: EngineChoice
    seconds: float
    alone: float
    size: Mapping[str, Any] = field(default_factory=dict)
    images: float = 1.0
    share: float = 1.0

    @property
    def name(self) -> str:
        """Name that is unique in a search, e.g. "0.1" or "1 images 0.25"; that of the full training is `FULL`."""
        parts = [f"{self.density:g}", *([f"images {self.images:g}"] if self.images < 1 else [])]
        return " ".join([*parts, *([f"epochs {self.share:g}"] if self.density == 1 and self.share < 1 else [])])

    @property
    def differences(self) -> dict[str, Any]:
        """Model options and fraction of the images, where they are not the full training's, as plain data."""
        fields = {"size": dict(self.size), "images": self.images}
        return {name: each for name, each in fields.items() if each not in ({}, 1.0)}

    @property
    def title(self) -> str:
        """Description in words; see `title_of`."""
        return title_of(self.density, self.images, self.share)

    @property
    def training_seconds(self) -> float:
        """Seconds of a whole training, per image of the full training split."""
        return self.seconds * self.epochs * self.images

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
                **rung.differences,
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


def title_of(density: float, images: float = 1.0, share: float = 1.0) -> str:
    """Describe a fidelity in words, e.g. "density 0.1" or "the full network on 25 % of the images".

    Args:
        density: density of the network.
        images: fraction of the training images.
        share: epochs as a fraction of the full training's.
    """
    network = f"density {density:.3g}" if density < 1 else "the full network"
    parts = [f"{100 * part:.3g} % of the {what}" for part, what in ((images, "images"), (share, "epochs")) if part < 1]
    return f"{network} on {' and '.join(parts)}" if parts else network


def _cost(rung: Fidelity, full: Fidelity) -> float:
    return rung.training_seconds / full.training_seconds
