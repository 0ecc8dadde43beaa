"""Find what a network can lose: trace it, and try it out."""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regimes.errors import UserError
from regimes.landscape.error import evaluating
from regimes.pruners.channels import dependencies
from regimes.structure.anatomy import NOBODY, Anatomy, Group, Layer
from regimes.structure.blocks import Block, branches, find_blocks
from regimes.structure.gates import Gates, fixed
from regimes.structure.removal import remove

CLOSE = 1e-4  # relative difference of outputs that rounding explains


def anatomy_of(model: nn.Module, inputs: Tensor) -> Anatomy:
    """Find the units and blocks of a model, by tracing it on a few inputs; then try them out.

    Units are the output channels of a convolution or linear layer that nothing but convolutions, linear layers and
    BatchNorm (element by element operations, pooling, reshaping, concatenation between them) reads, and that no
    addition ties to another layer's; so the head's outputs, a residual stream and a stem that begins one are none. A
    gate on a unit scales it where it is read, behind BatchNorm and ReLU: a unit that is read nowhere can leave, and
    nothing changes. That is tried: what computes something else without its units than with their gates shut has none.

    Raises:
        UserError: torch-pruning is missing or cannot follow the model, or nothing in it can leave.
    """
    blocks = find_blocks(model)
    names = {module: name for name, module in model.named_modules()}
    places = _places(model, inputs)
    layers = {name: _layer(name, model.get_submodule(name), blocks, count) for name, count in places.items()}
    order = {name: number for number, name in enumerate(names.values())}
    groups: list[Group] = []
    taken = 0
    parts = [(_producer(entries, names, layers), entries) for entries in dependencies(model, inputs)]
    for producer, entries in sorted(((each, of) for each, of in parts if each), key=lambda pair: order[pair[0]]):
        layer = layers[producer]
        for target, handler, positions, roots in entries:
            if target in names:
                member = layers[names[target]]
                side = member.cols if handler == "prune_in_channels" else member.rows
                assert side is not None
                side[torch.tensor(positions)] = taken + torch.tensor(roots)
        groups.append(Group(producer, taken, len(layer.rows), layer.block))
        taken += len(layer.rows)
    counted = sum(each.numel() for name in layers for each in model.get_submodule(name).parameters(recurse=False))
    rest = sum(each.numel() for each in model.parameters()) - counted
    found = _tried(model, Anatomy(layers, tuple(groups), blocks, rest), inputs)
    if not found.units and not blocks:
        raise UserError(
            f"nothing in {type(model).__name__} can leave: it has no residual block, and no layer whose channels only "
            "convolutions, linear layers and BatchNorm read"
        )
    return found


def _places(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Positions at which each layer is applied to one input, in the order of the modules; layers that run, only."""
    seen: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, _BatchNorm)):

            def note(module: nn.Module, _: object, out: Tensor, name: str = name) -> None:
                channels = out.shape[-1] if isinstance(module, nn.Linear) else out.shape[1]
                seen[name] = seen.get(name, 0) + out[0].numel() // channels

            hooks.append(module.register_forward_hook(note))
    try:
        with evaluating(model):
            model(inputs[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: seen[name] for name, _ in model.named_modules() if name in seen}


def _layer(name: str, module: nn.Module, blocks: tuple[Block, ...], places: int) -> Layer:
    within = next(branches(blocks, name), None)
    if isinstance(module, _BatchNorm):
        vectors = 2 if module.affine else 0
        return Layer(name, torch.full((module.num_features,), NOBODY), None, 0, places, vectors, within)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    kernel = math.prod(weight.shape[2:])
    rows, cols = torch.full((len(weight),), NOBODY), torch.full((weight.shape[1],), NOBODY)
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and weight.shape[1] == 1
    return Layer(name, rows, None if depthwise else cols, kernel, places, int(bias is not None), within)


def _producer(
    entries: list[tuple[nn.Module, str, list[int], list[int]]], names: dict[nn.Module, str], layers: dict[str, Layer]
) -> str | None:
    """The one layer that makes a group's channels; None where they are no units."""
    makers, readers = set(), set()
    for target, handler, positions, _ in entries:
        name = names.get(target)
        if name is None:
            if not type(target).__name__.startswith("_"):  # a bare parameter; torch-pruning's own are operations
                return None
            continue
        module = target
        if name not in layers:  # LayerNorm, GroupNorm, attention: their channels know of each other
            return None
        grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
        if grouped and layers[name].cols is not None:
            return None
        if handler == "prune_in_channels" and layers[name].cols is not None:
            readers.add(name)
        elif layers[name].kernel and layers[name].cols is not None:
            if len(positions) != len(layers[name].rows):
                return None
            makers.add(name)
    if len(makers) != 1 or not readers or len(layers[next(iter(makers))].rows) < 2:
        return None
    return makers.pop()


def _tried(model: nn.Module, anatomy: Anatomy, inputs: Tensor) -> Anatomy:
    """The groups whose units can leave as their gates say, and what happens without all of them."""
    trial = copy.deepcopy(model)
    gates = Gates(trial, anatomy)
    try:
        with evaluating(trial):
            every = [_half(group, anatomy.units) for group in anatomy.groups]
            together = torch.stack(every).any(0) if every else torch.zeros(0, dtype=torch.bool)
            sound = set(anatomy.groups)
            if not _leaves(model, trial, gates, anatomy, together, inputs):
                pairs = zip(anatomy.groups, every, strict=True)
                sound = {group for group, half in pairs if _leaves(model, trial, gates, anatomy, half, inputs)}
            groups = [
                dataclasses.replace(group, vital=_is_vital(trial, gates, anatomy, group, inputs))
                for group in anatomy.groups
                if group in sound
            ]
    finally:
        gates.remove()
    return _only(anatomy, groups)


def _half(group: Group, units: int) -> Tensor:
    """Every second unit of a group."""
    out = torch.zeros(units, dtype=torch.bool)
    out[group.first : group.first + group.size : 2] = True
    return out


def _leaves(model: nn.Module, trial: nn.Module, gates: Gates, anatomy: Anatomy, units: Tensor, inputs: Tensor) -> bool:
    """Whether the network without the units computes what it computes with their gates shut."""
    small = copy.deepcopy(model)
    try:
        remove(small, anatomy, units, [], {})
        with evaluating(small), gates.at(fixed(~units.to(inputs.device), _all_on(anatomy, inputs))):
            there, gone = trial(inputs), small(inputs)
    except (IndexError, RuntimeError):  # its own code counts on a width
        return False
    return bool((there - gone).abs().max() <= CLOSE * there.abs().max().clamp(min=1e-12))


def _is_vital(trial: nn.Module, gates: Gates, anatomy: Anatomy, group: Group, inputs: Tensor) -> bool:
    """Whether a block's branch, or the whole network, tells inputs apart no more without a group."""
    where = trial if group.block is None else trial.get_submodule(anatomy.blocks[group.block].gate)
    apart = []
    for on in (1.0, 0.0):
        units = torch.ones(anatomy.units, device=inputs.device)
        units[group.units] = on
        said: list[Tensor] = []
        hook = where.register_forward_hook(lambda module, given, out, said=said: said.append(out))
        try:
            with gates.at(fixed(units, _all_on(anatomy, inputs))):
                trial(inputs)
        finally:
            hook.remove()
        apart.append(float((said[-1] - said[-1].mean(0)).abs().max()))
    return apart[1] <= CLOSE * apart[0]


def _all_on(anatomy: Anatomy, inputs: Tensor) -> Tensor:
    return torch.ones(len(anatomy.blocks), device=inputs.device)


def _only(anatomy: Anatomy, groups: list[Group]) -> Anatomy:
    """The anatomy with some of its groups, numbered anew; the channels of the others always stay."""
    number = torch.full((anatomy.units + 1,), NOBODY)  # the last is NOBODY's
    kept, taken = [], 0
    for group in groups:
        number[group.units] = torch.arange(taken, taken + group.size)
        kept.append(dataclasses.replace(group, first=taken))
        taken += group.size
    layers = {
        name: dataclasses.replace(
            layer, rows=number[layer.rows], cols=None if layer.cols is None else number[layer.cols]
        )
        for name, layer in anatomy.layers.items()
    }
    return dataclasses.replace(anatomy, layers=layers, groups=tuple(kept))
