"""Tracing of a network: find the units and blocks that can be removed from it, and verify them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from regimes.data.inputs import Inputs, call
from regimes.device_faults import reraise_device_fault
from regimes.discovery.complexity import size_of
from regimes.discovery.count_macs import count_macs
from regimes.discovery.prunable_graph import ALWAYS_KEPT, PrunableGraph, PrunableLayer, UnitGroup
from regimes.discovery.save_network import is_plain
from regimes.discovery.verify_removal import removable_blocks, removable_units
from regimes.errors import UserError
from regimes.models.build import copied
from regimes.models.eval_mode import eval_mode
from regimes.models.residual_blocks import ResidualBlock, blocks_containing
from regimes.pruners.removable_channels import channel_groups, sharing_layers


def trace_graph(model: nn.Module, inputs: Inputs) -> PrunableGraph:
    """Return the removable units and blocks of a model, found by tracing it on a few inputs and then verified.

    Units are the output channels of a convolution or linear layer that only convolutions, linear layers and BatchNorm
    read (with element-wise operations, pooling, reshaping or concatenation in between), and that no addition ties to
    another layer's channels. The outputs of the head, a residual stream and the stem in front of one are therefore no
    units. A gate scales a unit where it is read, after BatchNorm and ReLU, so that a unit that is read nowhere can be
    removed without any change. This is verified: a group whose removal changes the output otherwise than its closed
    gates is left out.

    Raises:
        UserError: torch-pruning is missing or cannot trace the model, or nothing in it can be removed.
    """
    try:
        return _traced(copied(model), inputs)
    except UserError:
        raise
    except Exception as error:  # a user's code, and what tracing makes of it, may raise anything
        reraise_device_fault(error)
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{type(model).__name__} cannot be traced: {type(error).__name__}: {reason}") from error


def _traced(model: nn.Module, inputs: Inputs) -> PrunableGraph:
    blocks = removable_blocks(model, inputs)
    names = {module: name for name, module in model.named_modules()}
    places = _places(model, inputs)
    layers = {name: _layer(name, model.get_submodule(name), blocks, count) for name, count in places.items()}
    counted = size_of(PrunableGraph(layers, (), blocks, 0))
    order = {name: number for number, name in enumerate(names.values())}
    groups: list[UnitGroup] = []
    taken = 0
    shared = sharing_layers(model)
    parts = [
        (_producer(entries, names, layers), entries)
        for entries in channel_groups(model, inputs)
        if not any(target in shared for target, *_ in entries)
    ]
    for producer, entries in sorted(((each, of) for each, of in parts if each), key=lambda pair: order[pair[0]]):
        layer = layers[producer]
        for target, handler, positions, roots in entries:
            if target in names:
                member = layers[names[target]]
                side = member.cols if handler == "prune_in_channels" else member.rows
                assert side is not None
                side[torch.tensor(positions)] = taken + torch.tensor(roots)
        groups.append(UnitGroup(producer, taken, len(layer.rows), layer.block))
        taken += len(layer.rows)
    rest = sum(each.numel() for each in model.parameters()) - round(float(counted.params))
    rest_macs = max(0, count_macs(model, inputs) - round(float(counted.macs)))
    found = removable_units(model, PrunableGraph(layers, tuple(groups), blocks, rest, rest_macs), inputs)
    if not found.units and not blocks:
        raise UserError(
            f"nothing in {type(model).__name__} can be removed: it has no residual block, and no layer whose channels "
            "are read only by convolutions, linear layers and BatchNorm"
        )
    return found


def _places(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Positions at which each layer is applied per input, in the order of the modules, for layers that run."""
    seen: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, _BatchNorm)):

            def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
                at = given[0] if isinstance(module, _ConvTransposeNd) else out  # each input pixel is spread
                channels = at.shape[-1] if isinstance(module, nn.Linear) else at.shape[1]
                seen[name] = seen.get(name, 0) + at.numel() // channels

            hooks.append(module.register_forward_hook(note))
    try:
        with eval_mode(model):
            call(model, inputs[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: seen[name] for name, _ in model.named_modules() if name in seen}


def _layer(name: str, module: nn.Module, blocks: tuple[ResidualBlock, ...], places: int) -> PrunableLayer:
    within = next(blocks_containing(blocks, name), None)
    if isinstance(module, _BatchNorm):
        vectors = 2 if module.affine else 0
        return PrunableLayer(name, torch.full((module.num_features,), ALWAYS_KEPT), None, 0, places, vectors, within)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    kernel = math.prod(weight.shape[2:])
    rows, cols = torch.full((len(weight),), ALWAYS_KEPT), torch.full((weight.shape[1],), ALWAYS_KEPT)
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and weight.shape[1] == 1
    return PrunableLayer(name, rows, None if depthwise else cols, kernel, places, int(bias is not None), within)


def _producer(
    entries: list[tuple[nn.Module, str, list[int], list[int]]],
    names: dict[nn.Module, str],
    layers: dict[str, PrunableLayer],
) -> str | None:
    """Name of the only layer that produces a group's channels; None if they are no units."""
    makers, readers = set(), set()
    for target, handler, positions, _ in entries:
        name = names.get(target)
        if name is None:
            if not type(target).__name__.startswith(
                "_"
            ):  # a bare parameter; names of torch-pruning's operations begin with _
                return None
            continue
        module = target
        if name not in layers or not is_plain(module):  # LayerNorm, GroupNorm, attention: channels depend on each other
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
