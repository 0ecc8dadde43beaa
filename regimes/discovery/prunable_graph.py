"""What a network can lose: units that leave together, residual blocks, and which entries of which layer they own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.models.residual_blocks import ResidualBlock

NOBODY = -1  # owner of a channel that always stays


@dataclass(frozen=True)
class PrunableLayer:
    """One layer and the units that its channels belong to.

    Attributes:
        name: of the module.
        rows: (outputs,) the unit of each output channel; `NOBODY` where it always stays.
        cols: (inputs,) the unit of each input channel; None where a layer has no weights between channels (BatchNorm,
            a depthwise convolution).
        kernel: weights of one pair of channels; 0 for a BatchNorm.
        places: positions at which the kernel is applied to one input, so that a pair costs ``kernel * places`` MACs.
        vectors: parameters of one output channel beside the kernel: a bias, a BatchNorm's two.
        block: number of the block whose branch it is on; None: on no branch.
    """

    name: str
    rows: Tensor
    cols: Tensor | None
    kernel: int
    places: int
    vectors: int
    block: int | None

    @property
    def reads(self) -> bool:
        """Whether units enter it through weights: there a gate acts."""
        return self.cols is not None and bool((self.cols >= 0).any())


@dataclass(frozen=True)
class UnitGroup:
    """The units of one layer: they are told apart by where they are read.

    Attributes:
        name: of the layer that makes them.
        first, size: their numbers are first, ..., first + size - 1.
        block: number of the block they lie in; None: in no branch.
        vital: whether the block's branch (the whole network, outside of blocks) says nothing without them.
    """

    name: str
    first: int
    size: int
    block: int | None
    vital: bool = True

    @property
    def units(self) -> slice:
        """Their places among all units."""
        return slice(self.first, self.first + self.size)


@dataclass(frozen=True)
class PrunableGraph:
    """Units, blocks and layers of one network; what has been removed is missing from the layers.

    Attributes:
        layers: {name: layer} of all layers whose size is counted.
        groups: of units, in the order of the network's modules.
        blocks: residual blocks; their numbers stay when one is removed.
        rest: parameters that belong to no layer of ``layers``: they always stay.
    """

    layers: dict[str, PrunableLayer]
    groups: tuple[UnitGroup, ...]
    blocks: tuple[ResidualBlock, ...]
    rest: int

    @property
    def units(self) -> int:
        """How many units there were at the start."""
        return sum(group.size for group in self.groups)

    @property
    def standing(self) -> dict[int, ResidualBlock]:
        """{number: block} of the blocks that have not been removed."""
        left = {layer.block for layer in self.layers.values()}
        return {number: block for number, block in enumerate(self.blocks) if number in left}

    def without(self, units: Tensor, blocks: Iterable[int]) -> PrunableGraph:
        """What is left when units (bool, (units,): True is removed) and whole blocks have left."""
        gone = set(blocks)
        lost = torch.cat([units, units.new_zeros(1)])  # the last is NOBODY
        layers = {}
        for name, layer in self.layers.items():
            if layer.block not in gone:
                rows, cols = layer.rows[~lost[layer.rows]], layer.cols
                layers[name] = dataclasses.replace(layer, rows=rows, cols=None if cols is None else cols[~lost[cols]])
        return dataclasses.replace(self, layers=layers)


def widths(anatomy: PrunableGraph, gone: Tensor) -> dict[str, tuple[int, int]]:
    """{layer that makes units: (units left, units at the start)}."""
    return {group.name: (int((~gone[group.units]).sum()), group.size) for group in anatomy.groups}
