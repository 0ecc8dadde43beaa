"""Build the fidelities of a search: make and time networks, choose their engine, and (de)serialise them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from regimes.config.keys import digest, seed_of
from regimes.config.recipe import Recipe
from regimes.config.sweep import Size
from regimes.data.dataset import hold_out
from regimes.device_faults import reraise_device_fault
from regimes.errors import UserError
from regimes.experiment.context import RunContext, in_layout, one_thread
from regimes.experiment.engine_selection import EngineChoice, seconds_per_image, select_engine
from regimes.experiment.memory import release_memory
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.proxies import Proxy, make_proxy, selector_of

BISECTION_STEPS = 6  # densities tried in the search for a step time


class ProxyContext(RunContext):
    """Run context of a proxy: the full network's data and device, with networks cut to the proxy's sizes.

    Args:
        whole: the full network's context.
        proxy: the proxy.
    """

    def __init__(self, whole: RunContext, proxy: Proxy) -> None:
        self.__dict__.update(whole.__dict__)
        self.whole, self.proxy = whole, proxy

    @property
    def identity(self) -> dict[str, Any]:
        """The full network's identity with the proxy's kind and sizes, for content keys."""
        shapes = {name: list(shape) for name, shape in self.proxy.shapes.items()}
        return {**self.whole.identity, "proxy": {"name": self.proxy.name, "shapes": digest(shapes)}}

    def new_model(self, seed: int) -> nn.Module:
        """Return a proxy with fresh weights; the same seed gives the same bits."""
        return in_layout(self.proxy.fresh(self.whole.new_model(seed)), self.layout)


class ImagesContext(RunContext):
    """Run context with a part of the training images, drawn from every class where targets are classes.

    Args:
        whole: context with all images.
        images: fraction of the training images, below 1.
        seed: seed of the draw.
    """

    def __init__(self, whole: RunContext, images: float, seed: int) -> None:
        self.__dict__.update(whole.__dict__)
        self.whole, self.images, self.seed = whole, images, seed
        _, part = hold_out(whole.loaded.train, images, seed)
        self.data = dataclasses.replace(whole.data, train=part.to(whole.device, whole.dtype, whole.layout))

    @property
    def identity(self) -> dict[str, Any]:
        """The whole context's identity with the draw, for content keys."""
        return {**self.whole.identity, "images": {"fraction": self.images, "seed": self.seed}}

    def sized(self, size: Size) -> RunContext:
        """Return the context of a model of another size, with the same images."""
        return ImagesContext(self.whole.sized(size), self.images, self.seed) if size else self

    def new_model(self, seed: int) -> nn.Module:
        """Return a new model of the whole context."""
        return self.whole.new_model(seed)


@dataclass(frozen=True)
class ProxyBuilder:
    """Settings for building the fidelities of a search.

    Attributes:
        context: the full network's data, model and device.
        recipe: the training recipe of the full network.
        kind: the kind of proxy, a name in `PROXIES`.
        share: the proxies' epochs as a share of the recipe's.
        batch: number of proxies trained together.
        seed: seed of the network on which the structure of a proxy is decided.
        sharing: number of processes that share the device's memory.
        extremes: recipes on which an engine is also tested before it is selected.
        images: fraction of the training images that ``context`` holds.
    """

    context: RunContext
    recipe: Recipe
    kind: str
    share: float = 1.0
    batch: int = 1
    seed: int = 0
    sharing: int = 1
    extremes: tuple[Recipe, ...] = ()
    images: float = 1.0

    @property
    def epochs(self) -> int:
        """Epochs of a proxy."""
        return max(1, round(self.share * self.recipe.epochs))

    def on_images(self, fraction: float) -> ProxyBuilder:
        """Return the builder of fidelities on a fraction of the training images.

        Raises:
            UserError: they are fewer than the largest batch.
        """
        if fraction == 1:
            return self
        context = ImagesContext(self.context, fraction, self.seed)
        images = len(context.data.train.targets)
        largest = (self.extremes or (self.recipe,))[0].batch_size
        if largest > images:
            raise UserError(
                f"ladder.images: {fraction:g} of the training images are {images}, fewer than the largest batch size, "
                f"{largest}; use a larger fraction or smaller batches"
            )
        return dataclasses.replace(self, context=context, images=fraction)


def full_fidelity(builder: ProxyBuilder) -> Fidelity:
    """Build and time the full network as a fidelity."""
    return _timed(builder, builder.context, 1.0, 1.0, builder.recipe.epochs)


def partial_fidelity(builder: ProxyBuilder, full: Fidelity) -> Fidelity:
    """Return the full network, as it was timed, with the builder's images and epochs."""
    share = builder.epochs / builder.recipe.epochs
    return dataclasses.replace(full, context=builder.context, epochs=builder.epochs, images=builder.images, share=share)


def proxy_fidelity(builder: ProxyBuilder, density: float) -> Fidelity:
    """Build and time a proxy of a given density.

    Raises:
        UserError: the model cannot be reduced to this density.
    """
    context, recipe = builder.context, builder.recipe
    with one_thread():
        whole = context.new_model(seed_of("proxy", builder.seed))
        proxy = make_proxy(builder.kind, whole, context.data, density, recipe, builder.seed)
    return _timed(builder, ProxyContext(context, proxy), density, proxy.kept, builder.epochs)


def option_fidelity(builder: ProxyBuilder, option: str, value: Any) -> Fidelity:
    """Build and time the full network's model with another value of an option.

    Raises:
        UserError: the model does not take the value, or does not have fewer parameters than the full network.
    """
    context = builder.context.sized({option: value})
    share = _size_share(builder, context, f"ladder.values: {option} = {value}")
    return _timed(builder, context, share, share, builder.epochs, {option: value})


def own_fidelity(builder: ProxyBuilder, own: RunContext, number: int) -> Fidelity:
    """Build and time a network of the user's own in place of a proxy.

    Args:
        builder: settings for building it.
        own: context that makes the network.
        number: its index among the user's networks.

    Raises:
        UserError: the network does not fit the data, or does not have fewer parameters than the full network.
    """
    context = own if builder.images == 1 else ImagesContext(own, builder.images, builder.seed)
    share = _size_share(builder, context, f"proxies[{number}]")
    return _timed(builder, context, share, share, builder.epochs)


def _size_share(builder: ProxyBuilder, context: RunContext, what: str) -> float:
    """Number of parameters of a smaller network as a share of the full network's."""
    context.check_model()
    sizes = [sum(each.numel() for each in one.new_model(0).parameters()) for one in (context, builder.context)]
    if sizes[0] >= sizes[1]:
        raise UserError(
            f"{what} makes a network of {sizes[0]:,} parameters, the full one has {sizes[1]:,}; use values that make "
            "it smaller"
        )
    return sizes[0] / sizes[1]


def _timed(
    builder: ProxyBuilder,
    context: RunContext,
    density: float,
    kept: float,
    epochs: int,
    size: Mapping[str, Any] | None = None,
) -> Fidelity:
    choice = select_engine(context, [*builder.extremes, builder.recipe], builder.batch, builder.sharing)
    alone = seconds_per_image(context, EngineChoice("eager", 1), builder.recipe)
    seconds = alone if choice.engine == "eager" else seconds_per_image(context, choice, builder.recipe)
    release_memory(context.device)
    share = epochs / builder.recipe.epochs
    return Fidelity(density, kept, context, epochs, choice, seconds, alone, size or {}, builder.images, share)


def proxy_with_step_time(builder: ProxyBuilder, max_share: float, full: Fidelity) -> Fidelity:
    """Find the densest proxy whose measured training step takes at most a share of the full network's.

    Args:
        builder: settings for building it.
        max_share: the largest allowed share of the full network's seconds per step.
        full: the full network.

    Raises:
        UserError: no density is fast enough.
    """
    low, high, best = 0.005, 1.0, None
    for _ in range(BISECTION_STEPS):
        density = math.sqrt(low * high)
        try:
            rung = proxy_fidelity(builder, density)
        except UserError as error:
            reraise_device_fault(error)
            low = density  # too small for whole channels
            continue
        if rung.seconds <= max_share * full.seconds:
            low, best = density, rung
        else:
            high = density
    if best is None:
        raise UserError(
            f"ladder.step_time: no proxy is as fast as {max_share:g} of the full network's step time; "
            "increase it, or set densities = [...]"
        )
    return best


# -- serialisation ----------------------------------------------------------------------------------------------------


def facts_of(rung: Fidelity) -> dict[str, Any]:
    """Return a fidelity as plain JSON data; inverse of `fidelity_from_facts`."""
    facts: dict[str, Any] = {"density": rung.density, "kept": rung.kept, "epochs": rung.epochs, "seconds": rung.seconds}
    facts |= {"alone": rung.alone, "share": rung.share, **rung.differences}
    proxy = rung.context.proxy if isinstance(rung.context, ProxyContext) else None
    shapes = {name: list(shape) for name, shape in proxy.shapes.items()} if proxy else None
    return {**facts, "choice": asdict(rung.choice), "proxy": {"name": proxy.name, "shapes": shapes} if proxy else None}


def fidelity_from_facts(facts: Mapping[str, Any], context: RunContext, recipe: Recipe, seed: int = 0) -> Fidelity:
    """Rebuild a fidelity from the plain data of `facts_of`.

    Args:
        facts: the plain data.
        context: the full network's context.
        recipe: the training recipe of the full network.
        seed: seed with which a fraction of the images was drawn.
    """
    size, images, share = facts.get("size", {}), facts.get("images", 1.0), facts.get("share", 1.0)
    if images < 1:
        context = ImagesContext(context, images, seed)
    if facts["proxy"] is not None:
        shapes = {name: tuple(shape) for name, shape in facts["proxy"]["shapes"].items()}
        kind = facts["proxy"]["name"]
        selector = selector_of(kind, context.new_model(0), context.data, recipe)
        context = ProxyContext(context, Proxy(kind, facts["density"], facts["kept"], shapes, selector))
    choice, seconds, alone = EngineChoice(**facts["choice"]), facts["seconds"], facts["alone"]
    density, kept, context = facts["density"], facts["kept"], context.sized(size)
    return Fidelity(density, kept, context, facts["epochs"], choice, seconds, alone, size, images, share)
