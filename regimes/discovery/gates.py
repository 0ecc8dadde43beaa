"""Bernoulli gates on units and residual blocks, sampled for every input and applied to any model by hooks."""

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
    """Sampled gates of one forward pass: (n, units) and (n, blocks), each 0 or 1; n is the batch size or 1.

    For gradients they are leaf tensors, so that the loss can be differentiated with respect to each gate of each input.
    """

    units: Tensor
    blocks: Tensor


class Gates:
    """Gates on a model, whose class is not changed.

    A unit's gate multiplies it wherever a layer reads it, that is after BatchNorm, activation and pooling; a block's
    gate multiplies the output of its branch. With a gate at 0 the network computes exactly what it computes without the
    unit or block.

    Args:
        model: model that gets the hooks; `remove` takes them off.
        graph: units, blocks and layers of the model; call `update` after a removal.
    """

    def __init__(self, model: nn.Module, graph: PrunableGraph) -> None:
        self._draw: GateDraw | None = None
        self._padded: Tensor | None = None
        self._hooks: list[Any] = []
        self._owners: dict[str, Tensor] = {}
        device = next(model.parameters()).device
        for name, layer in graph.layers.items():
            if layer.reads_units:
                reader = model.get_submodule(name)
                self._hooks.append(reader.register_forward_pre_hook(self._gate_units(name)))
        for number, block in graph.remaining_blocks.items():
            self._hooks.append(model.get_submodule(block.gate).register_forward_hook(self._gate_block(number)))
        self._device = device
        self.update(graph)

    def update(self, graph: PrunableGraph) -> None:
        """Update the gates after units or blocks have been removed from the model."""
        self._owners = {
            name: layer.cols.to(self._device)
            for name, layer in graph.layers.items()
            if layer.reads_units and layer.cols is not None
        }

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def at(self, draw: GateDraw) -> Iterator[None]:
        """Run the model under these gates, as a context manager."""
        self._draw = draw
        ones = draw.units.new_ones(len(draw.units), 1)  # gate of the channels owned by ALWAYS_KEPT
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
    """Sample gates for a number of inputs: unit i is on with probability ``theta[i]``, block b with ``rho[b]``.

    Args:
        theta: (units,) probabilities.
        rho: (blocks,) probabilities.
        inputs: number of inputs.
        generator: random generator.
    """
    drawn = []
    for probability in (theta, rho):
        chance = torch.rand(inputs, len(probability), generator=generator, device=generator.device)
        gates = (chance.to(probability.device) < probability).to(probability.dtype)
        drawn.append(gates.requires_grad_())
    return GateDraw(*drawn)


def with_constant_rest(drawn: GateDraw, inputs: int, units: Tensor, blocks: Tensor) -> GateDraw:
    """Keep the sampled gates of the first ``inputs`` inputs and give all others the same gates.

    Args:
        drawn: sampled gates of a batch.
        inputs: number of inputs that keep theirs.
        units, blocks: (units,) and (blocks,) gates of the other inputs.
    """
    found = []
    for gates, settled in ((drawn.units, units), (drawn.blocks, blocks)):
        values = gates.detach().clone()
        values[inputs:] = settled.to(values.dtype)
        found.append(values.requires_grad_())
    return GateDraw(*found)


def constant_gates(units: Tensor, blocks: Tensor) -> GateDraw:
    """Return the same gates for every input."""
    return GateDraw(units[None].float(), blocks[None].float())
