"""Bernoulli gates on units and residual blocks: drawn for every input, put into any model by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regimes.discovery.prunable_graph import PrunableGraph


@dataclass(frozen=True)
class GateDraw:
    """Gates of one forward pass: (n, units) and (n, blocks), each 0 or 1; n is the batch or 1.

    Kept where a gradient is wanted: as leaves, so that the loss can be differentiated by each gate of each input.
    """

    units: Tensor
    blocks: Tensor


class Gates:
    """Gates on a model, without a change to its class.

    A unit's gate multiplies it wherever a layer reads it, that is behind BatchNorm, activation and pooling; a block's
    gate multiplies what its branch adds. With a gate at 0 the network computes exactly what it would compute without
    the unit or the block.

    Args:
        model: gets hooks; `remove` takes them off.
        anatomy: of the model; `now` follows it when something leaves.
    """

    def __init__(self, model: nn.Module, anatomy: PrunableGraph) -> None:
        self._draw: GateDraw | None = None
        self._padded: Tensor | None = None
        self._hooks: list[Any] = []
        self._owners: dict[str, Tensor] = {}
        device = next(model.parameters()).device
        for name, layer in anatomy.layers.items():
            if layer.reads:
                reader = model.get_submodule(name)
                self._hooks.append(reader.register_forward_pre_hook(self._gate_units(name)))
        for number, block in anatomy.standing.items():
            self._hooks.append(model.get_submodule(block.gate).register_forward_hook(self._gate_block(number)))
        self._device = device
        self.now(anatomy)

    def now(self, anatomy: PrunableGraph) -> None:
        """Follow a model that has lost something."""
        self._owners = {
            name: layer.cols.to(self._device)
            for name, layer in anatomy.layers.items()
            if layer.reads and layer.cols is not None
        }

    def remove(self) -> None:
        """Take the hooks off: the model is plain again."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def at(self, draw: GateDraw) -> Iterator[None]:
        """Run the model under these gates."""
        self._draw = draw
        ones = draw.units.new_ones(len(draw.units), 1)  # what NOBODY owns is always there
        self._padded = torch.cat([draw.units, ones], dim=1)
        try:
            yield
        finally:
            self._draw = self._padded = None

    def _gate_units(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            owners = self._owners.get(name)
            if self._padded is None or owners is None:
                return None
            gate, (values, *others) = self._padded[:, owners], inputs
            if isinstance(module, nn.Linear):
                shape = (len(gate), *[1] * (values.dim() - 2), gate.shape[1])
            else:
                shape = (*gate.shape, *[1] * (values.dim() - 2))
            return (values * gate.view(shape).to(values.dtype), *others)

        return hook

    def _gate_block(self, number: int) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> Tensor | None:
            if self._draw is None:
                return None
            gate = self._draw.blocks[:, number]
            return out * gate.view(-1, *[1] * (out.dim() - 1)).to(out.dtype)

        return hook


def draw(theta: Tensor, rho: Tensor, inputs: int, generator: torch.Generator) -> GateDraw:
    """Draw gates for so many inputs: unit i is on with probability ``theta[i]``, block b with ``rho[b]``."""
    drawn = []
    for probability in (theta, rho):
        chance = torch.rand(inputs, len(probability), generator=generator, device=generator.device)
        gates = (chance.to(probability.device) < probability).to(probability.dtype)
        drawn.append(gates.requires_grad_())
    return GateDraw(*drawn)


def partly(drawn: GateDraw, inputs: int, units: Tensor, blocks: Tensor) -> GateDraw:
    """The draw for so many of the inputs; for all others the same gates: ``units`` (units,), ``blocks`` (blocks,)."""
    found = []
    for gates, settled in ((drawn.units, units), (drawn.blocks, blocks)):
        values = gates.detach().clone()
        values[inputs:] = settled.to(values.dtype)
        found.append(values.requires_grad_())
    return GateDraw(*found)


def fixed(units: Tensor, blocks: Tensor) -> GateDraw:
    """The same gates for every input."""
    return GateDraw(units[None].float(), blocks[None].float())
