"""Proxies: physically smaller networks on which hyperparameters are tried.

The structure of a proxy (the number of channels of each layer) is decided once, on one fresh network. Every trial then
cuts a fresh full network of its own to these sizes. So the proxies of all trials have the same shapes and train as one
fleet, and no trial starts from another's weights.

To add a kind of proxy, add a function here and a line to `PROXIES`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.data.inputs import call
from regimes.device_faults import reraise_device_fault
from regimes.discovery.api import discover
from regimes.errors import UserError
from regimes.hpo import PROXIES
from regimes.hpo.channel_selection import ChannelSelector, layer_weights, magnitudes, saliencies
from regimes.losses.functions import loss_value
from regimes.models.residual_blocks import remove_missing_blocks
from regimes.pruners.channels import fit_to_state, shrink
from regimes.pruners.prune import prunable
from regimes.pruners.removable_channels import check_runs
from regimes.registry import lookup

MIN_CHANNEL_SHARE = 0.15  # kept of each layer, as in the reference code of proxy hyperparameter optimisation
SALIENCY_IMAGES = 64  # images from which saliency is estimated
PRESSURE_TRIES = 4  # pressures tried for a density
MAX_DENSITY_RATIO = 1.4  # accepted ratio between a discovered structure's density and the one asked for
MAX_EVEN_RATIO = 1.65  # the same for a density that makes widths even
WIDTH_MULTIPLES = (8, 4, 2, 1)
OWN_PROXIES = "or give smaller networks of your own: ladder(..., proxies=[...]), in a file [ladder] option, values"


@dataclass(frozen=True)
class Proxy:
    """Structure of a smaller network.

    Attributes:
        name: kind of proxy.
        density: density asked for.
        kept: fraction of the prunable weights that it has.
        shapes: {name: shape} of its state dict.
        selector: selects the channels kept of a fresh network; None: the first ones.
    """

    name: str
    density: float
    kept: float
    shapes: Mapping[str, tuple[int, ...]]
    selector: ChannelSelector | None = field(default=None, repr=False)

    def fresh(self, whole: nn.Module) -> nn.Module:
        """Cut a fresh full network to the proxy's sizes, in place, and return it.

        The weights of a layer with fewer inputs are scaled by ``sqrt(full fan_in / fan_in)``, so that its outputs have
        the full network's variance.
        """
        state = dict(whole.state_dict())
        fan_in = {name: each[0].numel() for name, each in layer_weights(whole).items()}
        cut = self.selector(whole, self.shapes) if self.selector else _first(state, self.shapes)
        for name, each in cut.items():
            if name in fan_in and each[0].numel() != fan_in[name]:
                cut[name] = each * (fan_in[name] / each[0].numel()) ** 0.5
        return fit_to_state(remove_missing_blocks(whole, cut), cut)


def _first(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The first channels of every tensor; fresh weights are identically distributed, so any are as good."""
    return {name: state[name][tuple(slice(size) for size in shape)].clone() for name, shape in shapes.items()}


def _proxy(
    name: str, whole: nn.Module, small: nn.Module, density: float, selector: ChannelSelector | None = None
) -> Proxy:
    sizes = [sum(weight.numel() for weight in prunable(each).values()) for each in (small, whole)]
    shapes = {key: tuple(each.shape) for key, each in small.state_dict().items()}
    return Proxy(name, density, sizes[0] / sizes[1], shapes, selector)


def selector_of(kind: str, whole: nn.Module, data: Dataset, recipe: Recipe) -> ChannelSelector | None:
    """Return the channel selector of a kind of proxy; None if it keeps the first channels."""
    if kind == "channels-magnitude":
        return ChannelSelector.of(whole, data, magnitudes)
    if kind == "channels-saliency":
        return ChannelSelector.of(whole, data, saliencies(data, recipe.loss_fn, SALIENCY_IMAGES))
    return None


# -- kinds of proxies: (fresh network, data on its device, density, recipe, seed) -> Proxy -----------------------------

ProxyMaker = Callable[[nn.Module, Dataset, float, Recipe, int], Proxy]


def make_proxy(kind: str, whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """Make a proxy of a kind in `PROXIES`, and check that a fresh network cut to its sizes runs.

    Args:
        kind: kind of proxy.
        whole: a fresh network; it is not changed.
        data: the data, on the network's device.
        density: density of the proxy.
        recipe: training recipe of the full network.
        seed: seed of the structure.

    Raises:
        UserError: the network cannot be reduced to this density.
    """
    make: ProxyMaker = lookup(PROXIES, kind, "proxy")
    try:
        proxy = make(copy.deepcopy(whole), data, density, recipe, seed)
        check_runs(proxy.fresh(copy.deepcopy(whole)), whole, data.train.inputs[:2])
    except UserError as error:
        raise UserError(f"{error}; {OWN_PROXIES}") from error
    except Exception as error:  # surgery on code that depends on a width raises many kinds of errors
        reraise_device_fault(error)
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"proxy '{kind}': {type(whole).__name__} cannot be cut: {reason}; {OWN_PROXIES}") from error
    return proxy


def narrowed(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """Return a uniformly narrower network: the same share of channels in every layer.

    Widths are rounded to multiples of up to 8 where that stays near the density, because even widths stack in smaller
    fleets.
    """
    kept = 0.0
    with contextlib.suppress(UserError):  # of a density that was not asked for
        small, kept = shrink(whole, _even(whole, density), data.train.inputs[:2], "channels-random", "uniform", seed)
    if not 1 / MAX_EVEN_RATIO <= kept / density <= MAX_EVEN_RATIO:  # widths that are not multiples of each other
        small, kept = shrink(whole, density, data.train.inputs[:2], "channels-random", "uniform", seed)
    return _proxy("narrowed", whole, small, density)


def _even(whole: nn.Module, density: float) -> float:
    """The nearest density at which the narrowest layer's width is a multiple of 8, 4 or 2."""
    narrowest = min(len(each) for name, each in list(prunable(whole).items())[:-1] or prunable(whole).items())
    for multiple in WIDTH_MULTIPLES:
        count = max(multiple, multiple * round(narrowest * density**0.5 / multiple))
        even = (count / narrowest) ** 2
        if even < 1 and 1 / MAX_EVEN_RATIO <= even / density <= MAX_EVEN_RATIO:
            return even
    return density


def magnitude(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """Keep the channels with the largest initial weights, ranked over all layers, and a minimum share of each layer.

    Each trial keeps the largest channels of its own fresh weights.
    """
    small = _by_score("channels-magnitude", whole, data, density, seed)
    return _proxy("channels-magnitude", whole, small, density, selector_of("channels-magnitude", whole, data, recipe))


def saliency(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """Keep the channels with the largest first-order effect on the initial loss, ranked over all layers.

    A minimum share of each layer stays. Each trial keeps the most salient channels of its own fresh weights.
    """
    small = _most_salient(whole, data, density, recipe, seed)
    return _proxy("channels-saliency", whole, small, density, selector_of("channels-saliency", whole, data, recipe))


def random_channels(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """Use the widths of "channels-saliency", but keep arbitrary channels: a control for the selection."""
    return _proxy("channels-random", whole, _most_salient(whole, data, density, recipe, seed), density)


def _most_salient(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> nn.Module:
    def judge(model: nn.Module) -> None:
        """Leave the gradients of a few images on the model."""
        inputs, targets = data.train.inputs[:SALIENCY_IMAGES], data.train.targets[:SALIENCY_IMAGES]
        loss_value(recipe.loss_fn, call(model, inputs), targets).backward()

    return _by_score("channels-saliency", whole, data, density, seed, judge)


def discovered(whole: nn.Module, data: Dataset, density: float, recipe: Recipe, seed: int) -> Proxy:
    """Use the structure found by `regimes.discover`, searching the pressure that leads to a density near the given one.

    Raises:
        UserError: no pressure leads to that density.
    """
    size = sum(weight.numel() for weight in prunable(whole).values())
    nu, best, off = 0.3, None, float("inf")
    for _ in range(PRESSURE_TRIES):
        found = discover(whole, data, nu=nu, recipe=recipe, seed=seed)
        kept = sum(weight.numel() for weight in prunable(found.model).values()) / size
        away = max(kept / density, density / kept)
        if away < off and not found.message:
            best, off = found.model, away
        if off <= MAX_DENSITY_RATIO:
            break
        nu = nu / 3 if found.message else nu * (kept / density) ** 1.5
    if best is None or off > 2 * MAX_DENSITY_RATIO:
        raise UserError(f"ladder.proxy = 'discovered': no pressure leads to a density near {density:g}; use another")
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
        inputs = data.train.inputs[:2]
        small, _ = shrink(whole, density, inputs, name, "global", seed, floor=MIN_CHANNEL_SHARE, prepare=judge)
    return small
