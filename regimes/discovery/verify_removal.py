"""Try out what a trace says of a network: what it loses must be what its gates shut."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from regimes.discovery.gates import GateDraw, Gates, fixed
from regimes.discovery.prunable_graph import NOBODY, PrunableGraph, UnitGroup
from regimes.discovery.removal import remove
from regimes.errors import UserError
from regimes.landscape.error import evaluating
from regimes.models.residual_blocks import ResidualBlock, find_blocks, remove_block

CLOSE = 1e-4  # relative difference of outputs that rounding explains


def sound_blocks(model: nn.Module, inputs: Tensor) -> tuple[ResidualBlock, ...]:
    """The residual blocks of a model without which it computes what it computes with their gates shut.

    Not the model itself, and none whose branch is used elsewhere too.
    """
    names: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        names[id(module)] = names.get(id(module), 0) + 1
    found = []
    for block in find_blocks(model):
        inside = (each for name in block.branch for each in model.get_submodule(name).modules() if _holds(each))
        if block.name and all(names[id(each)] == 1 for each in inside):
            found.append(block)
    model = _stirred(model)
    if _go(model, found, inputs):
        return tuple(found)
    return tuple(block for block in found if _go(model, [block], inputs))


def _holds(module: nn.Module) -> bool:
    """Whether a module has parameters of its own; one ReLU may serve many."""
    return any(True for _ in module.parameters(recurse=False))


def _go(model: nn.Module, blocks: list[ResidualBlock], inputs: Tensor) -> bool:
    """Whether a network without blocks computes what it computes with their gates shut."""
    gated, small = copy.deepcopy(model), copy.deepcopy(model)
    for block in blocks:
        gated.get_submodule(block.gate).register_forward_hook(lambda module, given, out: 0 * out)
    try:
        for block in blocks:
            remove_block(small, block)
        with evaluating(gated), evaluating(small):
            return _alike(gated(inputs), small(inputs))
    except Exception:  # its code reads the block's attributes, or calls it with more than one argument
        return False


def sound_units(model: nn.Module, anatomy: PrunableGraph, inputs: Tensor) -> PrunableGraph:
    """The anatomy with those groups whose units can leave as their gates say, told what happens without all of them.

    Raises:
        UserError: gates of single inputs reach other inputs.
    """
    model = _stirred(model)
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
            found = _only(anatomy, groups)
            gates.now(found)
            _check_inputs(trial, gates, found, inputs)
    finally:
        gates.remove()
    return found


def _half(group: UnitGroup, units: int) -> Tensor:
    """Every second unit of a group."""
    out = torch.zeros(units, dtype=torch.bool)
    out[group.first : group.first + group.size : 2] = True
    return out


def _leaves(
    model: nn.Module, trial: nn.Module, gates: Gates, anatomy: PrunableGraph, units: Tensor, inputs: Tensor
) -> bool:
    """Whether the network without the units computes what it computes with their gates shut."""
    small = copy.deepcopy(model)
    try:
        remove(small, anatomy, units, [], {})
        with evaluating(small), gates.at(fixed(~units.to(inputs.device), _all_on(anatomy, inputs))):
            there, gone = trial(inputs), small(inputs)
    except Exception:  # its own code counts on a width, in whatever way
        return False
    return _alike(there, gone)


def _alike(there: Tensor, gone: Tensor) -> bool:
    return bool((there - gone).abs().max() <= CLOSE * there.abs().max().clamp(min=1e-12))


def _check_inputs(trial: nn.Module, gates: Gates, anatomy: PrunableGraph, inputs: Tensor) -> None:
    """Refuse a model in which a gate that is drawn for one input acts on another."""
    random = torch.Generator().manual_seed(0)
    units, blocks = (
        (torch.rand(len(inputs), count, generator=random) < 0.5).to(inputs)
        for count in (anatomy.units, len(anatomy.blocks))
    )
    try:
        with gates.at(GateDraw(units, blocks)):
            together = trial(inputs)
        alone = []
        for number in range(len(inputs)):
            one = slice(number, number + 1)
            with gates.at(GateDraw(units[one], blocks[one])):
                alone.append(trial(inputs[one]))
        sound = _alike(torch.cat(alone), together)
    except (IndexError, RuntimeError):
        sound = False
    if not sound:
        raise UserError(
            f"{type(trial).__name__} mixes the inputs of a batch, or folds another axis into it; gates are drawn for "
            "each input: the first axis of what a layer reads has to be the batch"
        )


def _stirred(model: nn.Module) -> nn.Module:
    """A copy without parameters that are all zero, behind which nothing could be seen."""
    stirred, random = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for each in stirred.parameters():
        if not bool(each.detach().any()):
            each.data = 0.1 * torch.randn(each.shape, generator=random).to(each)
    return stirred


def _is_vital(trial: nn.Module, gates: Gates, anatomy: PrunableGraph, group: UnitGroup, inputs: Tensor) -> bool:
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


def _all_on(anatomy: PrunableGraph, inputs: Tensor) -> Tensor:
    return torch.ones(len(anatomy.blocks), device=inputs.device)


def _only(anatomy: PrunableGraph, groups: list[UnitGroup]) -> PrunableGraph:
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
