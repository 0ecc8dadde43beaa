"""Prunable graph: removable units, residual blocks, and the channels of each layer that they own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.models.residual_blocks import ResidualBlock

ALWAYS_KEPT = -1  # owner of channels that cannot be removed


@dataclass(frozen=True)
class PrunableLayer:
    """A layer and the owners of its channels.

    Attributes:
        name: name of the module.
        rows: (outputs,) unit that owns each output channel; `ALWAYS_KEPT` if none.
        cols: (inputs,) unit that owns each input channel; None if the layer has no weights between channels (BatchNorm,
            a depthwise convolution).
        kernel: number of weights per pair of channels; 0 for BatchNorm.
        places: positions at which the kernel is applied per input; a pair of channels costs ``kernel * places`` MACs.
        vectors: parameters per output channel besides the kernel: a bias, or two of a BatchNorm.
        block: number of the residual block whose branch contains it; None outside branches.
    """

    name: str
    rows: Tensor
    cols: Tensor | None
    kernel: int
    places: int
    vectors: int
    block: int | None

    @property
    def reads_units(self) -> bool:
        """Whether units enter the layer through weights; the layer's input is gated then."""
        return self.cols is not None and bool((self.cols >= 0).any())


@dataclass(frozen=True)
class UnitGroup:
    """The units of one layer, identified by the layers that consume them.

    Attributes:
        name: name of the layer that produces them.
        first, size: the units' numbers are first, ..., first + size - 1.
        block: number of the residual block whose branch contains them; None outside branches.
        vital: whether the output of the block's branch (of the network, outside branches) is constant without them.
    """

    name: str
    first: int
    size: int
    block: int | None
    vital: bool = True

    @property
    def units(self) -> slice:
        """Slice of the group in a tensor of all units."""
        return slice(self.first, self.first + self.size)


@dataclass(frozen=True)
class PrunableGraph:
    """Units, blocks and layers of a network; removed channels and blocks are missing from the layers.

    Attributes:
        layers: {name: layer} of all layers that count towards the size.
        groups: groups of units, in the order of the network's modules.
        blocks: residual blocks; a removed block keeps its number.
        rest: number of parameters outside ``layers``, which are always kept.
        rest_macs: multiply-accumulates per input outside ``layers`` (attention, recurrent layers, bare products).
    """

    layers: dict[str, PrunableLayer]
    groups: tuple[UnitGroup, ...]
    blocks: tuple[ResidualBlock, ...]
    rest: int
    rest_macs: int = 0

    @property
    def units(self) -> int:
        """Number of units at the start, removed ones included."""
        return sum(group.size for group in self.groups)

    @property
    def remaining_blocks(self) -> dict[int, ResidualBlock]:
        """{number: block} of the blocks that have not been removed."""
        left = {layer.block for layer in self.layers.values()}
        return {number: block for number, block in enumerate(self.blocks) if number in left}

    def without(self, units: Tensor, blocks: Iterable[int]) -> PrunableGraph:
        """Return the graph after a removal.

        Args:
            units: (units,) mask, True for removed units.
            blocks: numbers of the removed blocks.
        """
        gone = set(blocks)
        lost = torch.cat([units, units.new_zeros(1)])  # the last entry belongs to ALWAYS_KEPT
        layers = {}
        for name, layer in self.layers.items():
            if layer.block not in gone:
                rows, cols = layer.rows[~lost[layer.rows]], layer.cols
                layers[name] = dataclasses.replace(layer, rows=rows, cols=None if cols is None else cols[~lost[cols]])
        return dataclasses.replace(self, layers=layers)


def widths(graph: PrunableGraph, removed: Tensor) -> dict[str, tuple[int, int]]:
    """Return {layer that produces units: (remaining units, units at the start)}."""
    return {group.name: (int((~removed[group.units]).sum()), group.size) for group in graph.groups}
