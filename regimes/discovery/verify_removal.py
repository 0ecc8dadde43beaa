"""Verification of a traced graph: removing units or blocks must give the same output as closing their gates."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regimes.data.inputs import Inputs, call
from regimes.device_faults import reraise_device_fault
from regimes.discovery.gates import GateDraw, Gates, constant_gates
from regimes.discovery.prunable_graph import ALWAYS_KEPT, PrunableGraph, UnitGroup
from regimes.discovery.removal import remove
from regimes.errors import UserError
from regimes.losses.functions import logits
from regimes.models.eval_mode import eval_mode
from regimes.models.residual_blocks import ResidualBlock, find_blocks, remove_block
from regimes.pruners.removable_channels import sharing_layers

OUTPUT_RTOL = 1e-4  # relative difference of outputs explained by rounding


def removable_blocks(model: nn.Module, inputs: Inputs) -> tuple[ResidualBlock, ...]:
    """Return the residual blocks whose removal gives the same output as closing their gates.

    The model itself and blocks whose branch is used elsewhere, or shares a weight, are excluded.
    """
    names: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        names[id(module)] = names.get(id(module), 0) + 1
    found, shared = [], sharing_layers(model)
    for block in find_blocks(model):
        inside = [each for name in block.branch for each in model.get_submodule(name).modules() if _holds(each)]
        if block.name and all(names[id(each)] == 1 and each not in shared for each in inside):
            found.append(block)
    model = _with_nonzero_weights(model)
    if _removal_matches_gating(model, found, inputs):
        return tuple(found)
    return tuple(block for block in found if _removal_matches_gating(model, [block], inputs))


def _holds(module: nn.Module) -> bool:
    """Whether a module has parameters of its own; a ReLU without any may be shared."""
    return any(True for _ in module.parameters(recurse=False))


def _removal_matches_gating(model: nn.Module, blocks: list[ResidualBlock], inputs: Inputs) -> bool:
    """Whether removing blocks gives the same output as closing their gates."""
    gated, small = copy.deepcopy(model), copy.deepcopy(model)
    for block in blocks:
        gated.get_submodule(block.gate).register_forward_hook(lambda module, given, out: 0 * out)
    try:
        for block in blocks:
            remove_block(small, block)
        with eval_mode(gated), eval_mode(small):
            return _alike(call(gated, inputs), call(small, inputs))
    except Exception as error:  # code that uses the block's attributes or passes several arguments
        reraise_device_fault(error)
        return False


def removable_units(model: nn.Module, graph: PrunableGraph, inputs: Inputs) -> PrunableGraph:
    """Return the graph with only those groups whose removal gives the same output as closing their gates.

    Also sets `UnitGroup.vital`.

    Raises:
        UserError: a gate sampled for one input affects other inputs.
    """
    model = _with_nonzero_weights(model)
    trial = copy.deepcopy(model)
    gates = Gates(trial, graph)
    try:
        with eval_mode(trial):
            samples = {group: _samples(group, graph.units) for group in graph.groups}

            def removable(groups: Sequence[UnitGroup]) -> bool:
                tried = [torch.stack(masks).any(0) for masks in zip(*(samples[each] for each in groups), strict=True)]
                return all(_unit_removal_matches_gating(model, trial, gates, graph, units, inputs) for units in tried)

            sound = set(graph.groups)
            if not removable(graph.groups):
                sound = {group for group in graph.groups if removable([group])}
            groups = [
                dataclasses.replace(group, vital=_is_vital(trial, gates, graph, group, inputs))
                for group in graph.groups
                if group in sound
            ]
            found = _only(graph, groups)
            gates.update(found)
            _check_inputs(trial, gates, found, inputs)
    finally:
        gates.remove()
    return found


def _samples(group: UnitGroup, units: int) -> list[Tensor]:
    """Masks of units of a group: every second, the first one (an odd number may remain), all but the last."""
    first, end = group.first, group.first + group.size
    samples = []
    for part in (slice(first, end, 2), slice(first, first + 1), slice(first, end - 1)):
        mask = torch.zeros(units, dtype=torch.bool)
        mask[part] = True
        samples.append(mask)
    return samples


def _unit_removal_matches_gating(
    model: nn.Module, trial: nn.Module, gates: Gates, graph: PrunableGraph, units: Tensor, inputs: Inputs
) -> bool:
    """Whether removing units gives the same output as closing their gates."""
    small = copy.deepcopy(model)
    try:
        remove(small, graph, units, [], {})
        with eval_mode(small), gates.at(constant_gates(~units.to(inputs.device), _all_on(graph, inputs))):
            gated, removed = call(trial, inputs), call(small, inputs)
    except Exception as error:  # code that depends on a width
        reraise_device_fault(error)
        return False
    return _alike(gated, removed)


def _alike(gated: Any, removed: Any) -> bool:
    gated, removed = logits(gated), logits(removed)
    return bool((gated - removed).abs().max() <= OUTPUT_RTOL * gated.abs().max().clamp(min=1e-12))


def _check_inputs(trial: nn.Module, gates: Gates, graph: PrunableGraph, inputs: Inputs) -> None:
    """Refuse a model in which a gate sampled for one input affects another."""
    random = torch.Generator().manual_seed(0)
    units, blocks = (
        (torch.rand(len(inputs), count, generator=random) < 0.5).to(next(trial.parameters()))
        for count in (graph.units, len(graph.blocks))
    )
    try:
        with gates.at(GateDraw(units, blocks)):
            together = logits(call(trial, inputs))
        alone = []
        for number in range(len(inputs)):
            one = slice(number, number + 1)
            with gates.at(GateDraw(units[one], blocks[one])):
                alone.append(logits(call(trial, inputs[one])))
        sound = _alike(torch.cat(alone), together)
    except (IndexError, RuntimeError) as error:
        reraise_device_fault(error)
        sound = False
    if not sound:
        raise UserError(
            f"{type(trial).__name__} mixes the inputs of a batch, or folds another axis into it; the first axis of "
            "every layer's input must be the batch"
        )


def _with_nonzero_weights(model: nn.Module) -> nn.Module:
    """A copy in which all-zero parameters are random, since they would hide a difference."""
    stirred, random = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for each in stirred.parameters():
        if not bool(each.detach().any()):
            each.data = 0.1 * torch.randn(each.shape, generator=random).to(each)
    return stirred


def _is_vital(trial: nn.Module, gates: Gates, graph: PrunableGraph, group: UnitGroup, inputs: Inputs) -> bool:
    """Whether the output of a block's branch, or of the network, is the same for all inputs without a group."""
    where = trial if group.block is None else trial.get_submodule(graph.blocks[group.block].gate)
    apart = []
    for on in (1.0, 0.0):
        units = torch.ones(graph.units, device=inputs.device)
        units[group.units] = on
        said: list[Tensor] = []
        hook = where.register_forward_hook(lambda module, given, out, said=said: said.append(out))
        try:
            with gates.at(constant_gates(units, _all_on(graph, inputs))):
                call(trial, inputs)
        finally:
            hook.remove()
        apart.append(float((said[-1] - said[-1].mean(0)).abs().max()))
    return apart[1] <= OUTPUT_RTOL * apart[0]


def _all_on(graph: PrunableGraph, inputs: Inputs) -> Tensor:
    return torch.ones(len(graph.blocks), device=inputs.device)


def _only(graph: PrunableGraph, groups: list[UnitGroup]) -> PrunableGraph:
    """The graph with some of its groups, renumbered; the channels of the others become `ALWAYS_KEPT`."""
    number = torch.full((graph.units + 1,), ALWAYS_KEPT)  # the last entry belongs to ALWAYS_KEPT
    kept, taken = [], 0
    for group in groups:
        number[group.units] = torch.arange(taken, taken + group.size)
        kept.append(dataclasses.replace(group, first=taken))
        taken += group.size
    layers = {
        name: dataclasses.replace(
            layer, rows=number[layer.rows], cols=None if layer.cols is None else number[layer.cols]
        )
        for name, layer in graph.layers.items()
    }
    return dataclasses.replace(graph, layers=layers, groups=tuple(kept))
