"""The ladder: proxies from cheap to dear, the full network last, with what each costs in measured seconds."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from regimes.errors import UserError
from regimes.flow.engine import Choice, choose_engine, seconds_per_image
from regimes.flow.lab import Lab, in_layout, one_thread
from regimes.hpo import PROXIES
from regimes.hpo.proxies import Proxy, chooser_of
from regimes.registry import load
from regimes.spec.keys import digest, seed_of
from regimes.spec.recipe import Recipe
from regimes.training.stacked import padded

PAYS = 0.67  # of the time one by one: stacked proxies are worth more than what one result could stop
SEARCHED = 6  # densities that are tried for a step time


class ProxyLab(Lab):
    """The lab of a proxy: the same data and device, and networks cut down to the proxy's sizes.

    Its keys rest on the proxy's sizes too.
    """

    def __init__(self, whole: Lab, proxy: Proxy) -> None:
        self.__dict__.update(whole.__dict__)
        self.whole, self.proxy = whole, proxy

    @property
    def identity(self) -> dict[str, Any]:
        """That of the full network, and the proxy's kind and sizes."""
        shapes = {name: list(shape) for name, shape in self.proxy.shapes.items()}
        return {**self.whole.identity, "proxy": {"name": self.proxy.name, "shapes": digest(shapes)}}

    def new_model(self, seed: int) -> nn.Module:
        """A proxy with fresh weights; same seed, same bits."""
        return in_layout(self.proxy.fresh(self.whole.new_model(seed)), self.layout)


@dataclass(frozen=True)
class Rung:
    """One kind of network that a trial is trained on.

    Attributes:
        density: that was asked for; 1: the full network.
        kept: fraction of the prunable weights that it has.
        lab: makes its networks.
        epochs: of its training.
        choice: engine that trains it, and networks at once.
        seconds: of a training step per image and network, with that engine.
        alone: the same, trained one by one.
    """

    density: float
    kept: float
    lab: Lab = field(repr=False)
    epochs: int
    choice: Choice
    seconds: float
    alone: float

    @property
    def together(self) -> int:
        """How many climb on at once: as many as stack where that pays, else one, so that its result can stop others."""
        return self.choice.lanes if self.seconds < PAYS * self.alone else 1

    def engine(self, networks: int) -> str:
        """What trains so many networks fastest: together, idle lanes included, or one by one."""
        if self.choice.lanes == 1:
            return self.choice.engine
        together = padded(networks, self.lab.new_model(seed=0)) * self.seconds
        return self.choice.engine if together < networks * self.alone else "eager"

    def recipe(self, recipe: Recipe) -> Recipe:
        """A trial's recipe on this rung."""
        return recipe.model_copy(update={"epochs": self.epochs, "stop": None})


@dataclass(frozen=True)
class Stretch:
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

    rungs: tuple[Rung, ...]
    stretches: tuple[Stretch, ...]
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


def ladder_of(rungs: Sequence[Rung], reports: Sequence[float], seconds: float = 0.0) -> Ladder:
    """A ladder of rungs; the full network is reported on its way too, at shares of its epochs."""
    stretches: list[Stretch] = []
    spent, unit, step = 0.0, 0.0, 0
    for number, rung in enumerate(rungs):
        shares = (*reports, 1.0) if number == len(rungs) - 1 else (1.0,)
        stops = sorted({max(1, round(share * rung.epochs)) for share in shares})
        cost = _cost(rung, rungs[-1])
        for start, stop in zip([0, *stops], stops, strict=False):
            so_far = spent + cost * stop / rung.epochs
            unit = unit or so_far
            step = max(step + 1, round(so_far / unit))
            stretches.append(Stretch(number, start, stop, step, so_far))
        spent += cost
    return Ladder(tuple(rungs), tuple(stretches), seconds)


def _cost(rung: Rung, full: Rung) -> float:
    return rung.seconds * rung.epochs / (full.seconds * full.epochs)


@dataclass(frozen=True)
class Making:
    """How the proxies of a search are made.

    Attributes:
        lab: of the full network.
        recipe: of its training.
        kind: a name in `PROXIES`.
        share: of the recipe's epochs that a proxy is trained for.
        batch: proxies that are trained together.
        seed: of the network on which structures are settled.
        workers: processes that share the memory.
        extremes: recipes on which an engine is tried too, before it is believed.
    """

    lab: Lab
    recipe: Recipe
    kind: str
    share: float = 1.0
    batch: int = 1
    seed: int = 0
    workers: int = 1
    extremes: tuple[Recipe, ...] = ()


def full_rung(how: Making) -> Rung:
    """The full network, timed."""
    return _rung(how, how.lab, 1.0, 1.0, how.recipe.epochs)


def proxy_rung(how: Making, density: float) -> Rung:
    """A proxy of a density, timed.

    Raises:
        UserError: the density is out of reach for this model.
    """
    lab, recipe = how.lab, how.recipe
    make = load(PROXIES, how.kind, "proxy")
    with one_thread():
        whole = lab.new_model(seed_of("proxy", how.seed))
        proxy: Proxy = make(copy.deepcopy(whole), lab.data, density, recipe, how.seed)
        proxy.fresh(whole)(lab.data.train.inputs[:2])  # it fits
    epochs = max(1, round(how.share * recipe.epochs))
    return _rung(how, ProxyLab(lab, proxy), density, proxy.kept, epochs)


def _rung(how: Making, lab: Lab, density: float, kept: float, epochs: int) -> Rung:
    choice = choose_engine(lab, [*how.extremes, how.recipe], how.batch, how.workers)
    alone = seconds_per_image(lab, Choice("eager", 1), how.recipe)
    seconds = alone if choice.lanes == 1 else seconds_per_image(lab, choice, how.recipe)
    return Rung(density, kept, lab, epochs, choice, seconds, alone)


def rung_as_fast(how: Making, most: float, full: Rung) -> Rung:
    """The densest proxy whose measured training step takes at most a share of the full network's.

    Raises:
        UserError: no density is as fast.
    """
    low, high, best = 0.005, 1.0, None
    for _ in range(SEARCHED):
        density = math.sqrt(low * high)
        try:
            rung = proxy_rung(how, density)
        except UserError:
            low = density  # too sparse for whole channels
            continue
        if rung.seconds <= most * full.seconds:
            low, best = density, rung
        else:
            high = density
    if best is None:
        raise UserError(
            f"ladder.step_time: no proxy takes {most:g} of the full network's step time; "
            "ask for more, or say densities = [...]"
        )
    return best


# -- as plain data ----------------------------------------------------------------------------------------------------


def facts_of(rung: Rung) -> dict[str, Any]:
    """A rung as plain data; `rung_from` makes the same one of it."""
    facts = {"density": rung.density, "kept": rung.kept, "epochs": rung.epochs, "seconds": rung.seconds}
    facts["alone"] = rung.alone
    proxy = rung.lab.proxy if isinstance(rung.lab, ProxyLab) else None
    shapes = {name: list(shape) for name, shape in proxy.shapes.items()} if proxy else None
    return {**facts, "choice": asdict(rung.choice), "proxy": {"name": proxy.name, "shapes": shapes} if proxy else None}


def rung_from(facts: Mapping[str, Any], lab: Lab, recipe: Recipe) -> Rung:
    """The rung that plain data describe, of networks of a lab."""
    if facts["proxy"] is not None:
        shapes = {name: tuple(shape) for name, shape in facts["proxy"]["shapes"].items()}
        kind = facts["proxy"]["name"]
        chooser = chooser_of(kind, lab.new_model(0), lab.data, recipe)
        lab = ProxyLab(lab, Proxy(kind, facts["density"], facts["kept"], shapes, chooser))
    choice = Choice(**facts["choice"])
    return Rung(facts["density"], facts["kept"], lab, facts["epochs"], choice, facts["seconds"], facts["alone"])
