"""Rungs, made: proxies built and timed, the engine chosen that trains them fastest, and all of it as plain data."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from regimes.config.keys import digest, seed_of
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.context import RunContext, in_layout, one_thread
from regimes.experiment.engine_selection import EngineChoice, seconds_per_image, select_engine
from regimes.hpo import PROXIES
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.proxies import Proxy, chooser_of
from regimes.registry import load

SEARCHED = 6  # densities that are tried for a step time


class ProxyContext(RunContext):
    """The context of a proxy: the same data and device, and networks cut down to the proxy's sizes.

    Its keys rest on the proxy's sizes too.
    """

    def __init__(self, whole: RunContext, proxy: Proxy) -> None:
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
class ProxyBuilder:
    """How the proxies of a search are made.

    Attributes:
        context: of the full network.
        recipe: of its training.
        kind: a name in `PROXIES`.
        share: of the recipe's epochs that a proxy is trained for.
        batch: proxies that are trained together.
        seed: of the network on which structures are settled.
        workers: processes that share the memory.
        extremes: recipes on which an engine is tried too, before it is believed.
        shift: see `LadderSpec`.
    """

    context: RunContext
    recipe: Recipe
    kind: str
    share: float = 1.0
    batch: int = 1
    seed: int = 0
    workers: int = 1
    extremes: tuple[Recipe, ...] = ()
    shift: Mapping[str, float] = field(default_factory=dict)


def full_fidelity(how: ProxyBuilder) -> Fidelity:
    """The full network, timed."""
    return _rung(how, how.context, 1.0, 1.0, how.recipe.epochs)


def proxy_fidelity(how: ProxyBuilder, density: float) -> Fidelity:
    """A proxy of a density, timed.

    Raises:
        UserError: the density is out of reach for this model.
    """
    context, recipe = how.context, how.recipe
    make = load(PROXIES, how.kind, "proxy")
    with one_thread():
        whole = context.new_model(seed_of("proxy", how.seed))
        proxy: Proxy = make(copy.deepcopy(whole), context.data, density, recipe, how.seed)
        proxy.fresh(whole)(context.data.train.inputs[:2])  # it fits
    epochs = max(1, round(how.share * recipe.epochs))
    return _rung(how, ProxyContext(context, proxy), density, proxy.kept, epochs)


def _rung(how: ProxyBuilder, context: RunContext, density: float, kept: float, epochs: int) -> Fidelity:
    choice = select_engine(context, [*how.extremes, how.recipe], how.batch, how.workers)
    alone = seconds_per_image(context, EngineChoice("eager", 1), how.recipe)
    seconds = alone if choice.lanes == 1 else seconds_per_image(context, choice, how.recipe)
    factors = {name: kept**-power for name, power in how.shift.items()} if kept < 1 else {}
    return Fidelity(density, kept, context, epochs, choice, seconds, alone, factors)


def proxy_with_step_time(how: ProxyBuilder, most: float, full: Fidelity) -> Fidelity:
    """The densest proxy whose measured training step takes at most a share of the full network's.

    Raises:
        UserError: no density is as fast.
    """
    low, high, best = 0.005, 1.0, None
    for _ in range(SEARCHED):
        density = math.sqrt(low * high)
        try:
            rung = proxy_fidelity(how, density)
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


def facts_of(rung: Fidelity) -> dict[str, Any]:
    """A rung as plain data; `fidelity_from_facts` makes the same one of it."""
    facts: dict[str, Any] = {"density": rung.density, "kept": rung.kept, "epochs": rung.epochs, "seconds": rung.seconds}
    facts |= {"alone": rung.alone, "shift": dict(rung.shift)}
    proxy = rung.context.proxy if isinstance(rung.context, ProxyContext) else None
    shapes = {name: list(shape) for name, shape in proxy.shapes.items()} if proxy else None
    return {**facts, "choice": asdict(rung.choice), "proxy": {"name": proxy.name, "shapes": shapes} if proxy else None}


def fidelity_from_facts(facts: Mapping[str, Any], context: RunContext, recipe: Recipe) -> Fidelity:
    """The rung that plain data describe, of networks of a context."""
    if facts["proxy"] is not None:
        shapes = {name: tuple(shape) for name, shape in facts["proxy"]["shapes"].items()}
        kind = facts["proxy"]["name"]
        chooser = chooser_of(kind, context.new_model(0), context.data, recipe)
        context = ProxyContext(context, Proxy(kind, facts["density"], facts["kept"], shapes, chooser))
    choice = EngineChoice(**facts["choice"])
    seconds, alone, shift = facts["seconds"], facts["alone"], facts.get("shift", {})
    return Fidelity(facts["density"], facts["kept"], context, facts["epochs"], choice, seconds, alone, shift)
