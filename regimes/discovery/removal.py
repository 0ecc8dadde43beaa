"""Removal of units and blocks from a network: smaller tensors, including the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from regimes.discovery.prunable_graph import PrunableGraph, PrunableLayer
from regimes.models.residual_blocks import remove_block
from regimes.pruners.channels import sync_layer_sizes
from regimes.training.update_rules import parameter_of


def remove(
    model: nn.Module, graph: PrunableGraph, units: Tensor, blocks: Iterable[int], momentum: dict[str, Tensor]
) -> tuple[PrunableGraph, dict[str, Tensor]]:
    """Remove units and blocks from a model in place; returns the graph and momentum of the smaller model.

    Parameters keep their identity; their gradients are dropped.

    Args:
        model: the model.
        graph: its units, blocks and layers.
        units: (units,) mask, True for units to remove; units removed before may be set again.
        blocks: numbers of the blocks to remove, none of which was removed before.
        momentum: the optimizer's buffers by name.
    """
    gone, units = set(blocks), units.cpu()
    left = graph.without(units, gone)
    for number in gone:
        remove_block(model, graph.blocks[number])
    lost = torch.cat([units, torch.zeros(1, dtype=torch.bool)])
    for name in left.layers:
        _shrink(model.get_submodule(name), graph.layers[name], lost, momentum)
    named = dict(model.named_parameters())
    for each in named.values():
        each.grad = None
    return left, {name: buffer for name, buffer in momentum.items() if parameter_of(name) in named}


def _shrink(module: nn.Module, layer: PrunableLayer, lost: Tensor, momentum: dict[str, Tensor]) -> None:
    rows, cols = ~lost[layer.rows], None if layer.cols is None else ~lost[layer.cols]
    if bool(rows.all()) and (cols is None or bool(cols.all())):
        return
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.dim() == 0:
            continue
        full = f"{layer.name}.{name}"
        tensor.data = _kept(tensor.data, rows, cols)
        for buffer in (each for each in momentum if parameter_of(each) == full):
            momentum[buffer] = _kept(momentum[buffer], rows, cols)
    sync_layer_sizes(module)


def _kept(tensor: Tensor, rows: Tensor, cols: Tensor | None) -> Tensor:
    out = tensor[rows.nonzero().flatten().to(tensor.device)]
    if tensor.dim() > 1 and cols is not None:
        out = out[:, cols.nonzero().flatten().to(tensor.device)]
    layout = (
        torch.channels_last
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        else (torch.contiguous_format)
    )
    return out.contiguous(memory_format=layout)
