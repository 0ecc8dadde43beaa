"""Proxies: physically smaller networks to try hyperparameters on; the structure once, the weights always fresh.

What a proxy keeps of the full network is decided once, on one fresh network: how many channels each layer has. Each
trial then starts from fresh weights of its own: a fresh full network is cut down to those sizes. So the proxies of all
trials have one shape and train as one fleet, and no trial starts from another's weights.

A new kind of proxy is a function here and a line in `PROXIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.discovery.api import discover
from regimes.errors import UserError
from regimes.hpo.channel_selection import ChannelSelector, layer_weights, magnitudes, saliencies
from regimes.models.residual_blocks import without_blocks
from regimes.pruners.channels import fitted, shrink
from regimes.pruners.prune import prunable

FLOOR = 0.15  # of a layer's channels that stay, as in the author's code of proxy hyperparameter optimisation
IMAGES = 64  # by which saliency is judged
TRIES = 4  # pressures that are tried for a density
NEAR = 1.4  # times too dense or too sparse is near enough for a discovered structure
EVEN = 1.65  # likewise, where it makes widths even
MULTIPLES = (8, 4, 2, 1)


@dataclass(frozen=True)
class Proxy:
    """A smaller network of a certain structure.

    Attributes:
        name: of its kind.
        density: that was asked for.
        kept: fraction of the prunable weights that it has.
        shapes: {name: shape} of its state dict.
        chooser: says which channels of a fresh network stay; None: the first ones, which is a draw like any other.
    """

    name: str
    density: float
    kept: float
    shapes: Mapping[str, tuple[int, ...]]
    chooser: ChannelSelector | None = field(default=None, repr=False)

    def fresh(self, whole: nn.Module) -> nn.Module:
        """Cut a fresh full network down to the proxy's sizes, in place; returns it.

        Weights of a layer that reads fewer channels are scaled by ``sqrt(fan_in / fan_in left)``, so that its outputs
        are as large as the full network's.
        """
        state = dict(whole.state_dict())
        fan_in = {name: each[0].numel() for name, each in layer_weights(whole).items()}
        cut = self.chooser(whole, self.shapes) if self.chooser else _first(state, self.shapes)
        for name, each in cut.items():
            if name in fan_in and each[0].numel() != fan_in[name]:
                cut[name] = each * (fan_in[name] / each[0].numel()) ** 0.5
        return fitted(without_blocks(whole, cut), cut)


def _first(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The first channels of every tensor: fresh weights are drawn alike, so these are as good as any."""
    return {name: state[name][tuple(slice(size) for size in shape)].clone() for name, shape in shapes.items()}


def _proxy(
    name: str, whole: nn.Module, small: nn.Module, density: float, chooser: ChannelSelector | None = None
) -> Proxy:
    sizes = [sum(weight.numel() for weight in prunable(each).values()) for each in (small, whole)]
    shapes = {key: tuple(each.shape) for key, each in small.state_dict().items()}
    return Proxy(name, density, sizes[0] / sizes[1], shapes, chooser)


def chooser_of(kind: str, whole: nn.Module, data: Dataset, recipe: Recipe) -> ChannelSelector | None:
    """What chooses the channels of a kind of proxy in each trial; None where any will do."""
    if kind == "channels-magnitude":
        return ChannelSelector.of(whole, data, magnitudes)
    if kind == "channels-saliency":
        return ChannelSelector.of(whole, data, saliencies(data, recipe.loss_fn, IMAGES))
    return None


# -- kinds of proxies: (a fresh network, data on its device, density, recipe, seed) -> Proxy ---------------------------

Maker = Callable[[nn.Module, Dataset, float, Recipe, int], Proxy]


def narrowed(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """The same share of channels in every layer: a uniformly narrower network.

    Numbers of channels are multiples of as much as comes near the density: even channels stack in smaller fleets.
    """
    small, kept = shrink(whole, _even(whole, density), data.train.inputs[:2], "channels-random", "uniform", seed)
    if not 1 / EVEN <= kept / density <= EVEN:  # some layer's channels are no multiple of another's
        small, kept = shrink(whole, density, data.train.inputs[:2], "channels-random", "uniform", seed)
    return _proxy("narrowed", whole, small, density)


def _even(whole: nn.Module, density: float) -> float:
    """The density nearby at which the narrowest layer has the evenest number of channels."""
    narrowest = min(len(each) for name, each in list(prunable(whole).items())[:-1] or prunable(whole).items())
    for multiple in MULTIPLES:
        count = max(multiple, multiple * round(narrowest * density**0.5 / multiple))
        there = (count / narrowest) ** 2
        if there < 1 and 1 / EVEN <= there / density <= EVEN:
            return there
    return density


def magnitude(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """Channels with the largest weights at initialisation, judged over all layers; a floor stays in each.

    In each trial the largest of that trial's own fresh weights stay.
    """
    small = _by_score("channels-magnitude", whole, data, density, seed)
    return _proxy("channels-magnitude", whole, small, density, chooser_of("channels-magnitude", whole, data, recipe))


def saliency(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """Channels whose loss to the network, to first order, is largest at initialisation, judged over all layers.

    In each trial those of that trial's own fresh weights stay.
    """
    small = _most_salient(whole, data, density, recipe, seed)
    return _proxy("channels-saliency", whole, small, density, chooser_of("channels-saliency", whole, data, recipe))


def random_channels(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """The widths of "channels-saliency", but any channels: shows whether it matters which ones stay."""
    return _proxy("channels-random", whole, _most_salient(whole, data, density, recipe, seed), density)


def _most_salient(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> nn.Module:
    def judge(model: nn.Module) -> None:
        """Leave the gradients of a few images on the model."""
        inputs, targets = data.train.inputs[:IMAGES], data.train.targets[:IMAGES]
        recipe.loss_fn(model(inputs), targets).backward()

    return _by_score("channels-saliency", whole, data, density, seed, judge)


def discovered(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """The structure that a discovery comes to; the pressure is looked for by which its density is near the one asked.

    Raises:
        UserError: no pressure leads there.
    """
    size = sum(weight.numel() for weight in prunable(whole).values())
    nu, best, off = 0.3, None, float("inf")
    for _ in range(TRIES):
        found = discover(whole, data, nu=nu, recipe=recipe, seed=seed)
        kept = sum(weight.numel() for weight in prunable(found.model).values()) / size
        away = max(kept / density, density / kept)
        if away < off and not found.message:
            best, off = found.model, away
        if off <= NEAR:
            break
        nu = nu / 3 if found.message else nu * (kept / density) ** 1.5
    if best is None or off > 2 * NEAR:
        raise UserError(f"ladder.proxy = 'discovered': no pressure was found that leaves a density near {density:g}")
    return _proxy("discovered", whole, best, density)


def _by_score(
    name: str,
    whole: nn.Module,
    data: Dataset,
    density: float,
    seed: int,
    judge: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    with torch.enable_grad():
        small, _ = shrink(whole, density, data.train.inputs[:2], name, "global", seed, floor=FLOOR, judge=judge)
    return small
