"""State of the gates: their probabilities, their effects on the loss, and what has been removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.discovery.prunable_graph import PrunableGraph
from regimes.discovery.removal_criterion import CHECKS_TO_REMOVE

# field of GateState -> name of its tensor in checkpoints
STORED_NAMES = {"prob": "chance", "effect": "worth", "streak": "agreed", "removed": "gone"}


@dataclass
class GateState:
    """Gates of all units, or of all blocks; each tensor has shape (gates,).

    Attributes:
        prob: probability that the gate is on; 0 if removed, 1 if the gate is not trained.
        effect: running estimate of the loss with the gate on minus the loss with it off (nats); negative if it helps.
        streak: number of consecutive checks that the gate passed as removable.
        removed: whether it has been removed.
    """

    prob: Tensor
    effect: Tensor
    streak: Tensor
    removed: Tensor

    @classmethod
    def of(cls, count: int, start: float, device: torch.device) -> GateState:
        """Return the gates at the start of a training."""
        return cls(
            torch.full((count,), start, device=device),
            torch.zeros(count, device=device),
            torch.zeros(count, dtype=torch.int64, device=device),
            torch.zeros(count, dtype=torch.bool, device=device),
        )

    @property
    def alive(self) -> int:
        """Number of gates that have not been removed."""
        return int((~self.removed).sum())

    def update(self, effect: Tensor, share: float) -> None:
        """Update the running estimate of the effects by an exponential moving average."""
        self.effect += share * (effect - self.effect)

    def step(self, step: float, pressure: Tensor) -> None:
        """Take a step of projected gradient descent: ``prob <- clip(prob - step (h + r), 0, 1)``."""
        self.prob = (self.prob - step * (self.effect + pressure)).clamp(0, 1).masked_fill(self.removed, 0)

    def check(self, passes: Tensor) -> Tensor:
        """Count a removal check; returns the gates that have passed `CHECKS_TO_REMOVE` checks in a row."""
        self.streak = torch.where(passes & ~self.removed, self.streak + 1, 0)
        return self.streak >= CHECKS_TO_REMOVE

    def mark_removed(self, removed: Tensor) -> None:
        """Mark gates as removed."""
        self.removed |= removed
        self.prob, self.effect = (each.masked_fill(self.removed, 0) for each in (self.prob, self.effect))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the state as named CPU tensors; inverse of `from_tensors`."""
        return {f"{name}/{stored}": getattr(self, field).cpu().clone() for field, stored in STORED_NAMES.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], name: str, device: torch.device) -> GateState:
        """Restore a state from the tensors of `tensors`."""
        return cls(**{field: tensors[f"{name}/{stored}"].to(device) for field, stored in STORED_NAMES.items()})


@dataclass(frozen=True)
class Removal:
    """Units and blocks to remove now.

    Attributes:
        units, blocks: boolean masks; all units of a removed block are removed with it.
        spared: names of the groups whose last unit is kept.
        removes_everything: whether the removal would leave no gated unit or block, or empty a layer without which the
            network cannot work; it must not be applied then.
    """

    units: Tensor
    blocks: Tensor
    spared: tuple[str, ...]
    removes_everything: bool


def guard_removal(
    graph: PrunableGraph, units: GateState, blocks: GateState, requested_units: Tensor, requested_blocks: Tensor
) -> Removal:
    """Restrict a requested removal: a layer keeps its last unit, and a block without units is removed as a whole.

    The unit kept has the largest probability, or of several the most negative effect on the loss.

    Args:
        graph: units, blocks and layers of the network.
        units, blocks: state of their gates.
        requested_units, requested_blocks: boolean masks of the gates to remove.
    """
    out_units = (requested_units & ~units.removed).clone()
    out_blocks = (requested_blocks & ~blocks.removed).clone()
    spared, starved = [], False
    for group in graph.groups:
        if group.block is not None and bool(blocks.removed[group.block] | out_blocks[group.block]):
            continue
        own = group.units
        if bool((units.removed[own] | out_units[own]).all()):
            if group.block is not None and group.vital:
                out_blocks[group.block] = True
            else:
                rank = units.prob[own] - 1e-3 * units.effect[own]
                best = rank.masked_fill(units.removed[own], -torch.inf).argmax()
                out_units[group.first + int(best)] = False
                spared.append(group.name)
                starved |= group.vital
    for group in graph.groups:
        if group.block is not None and bool(out_blocks[group.block]):
            out_units[group.units] = ~units.removed[group.units]
    outside = any(group.block is None for group in graph.groups)  # each of these keeps a unit
    everything = starved or (not outside and bool((blocks.removed | out_blocks).all()))
    return Removal(out_units, out_blocks, tuple(spared), everything)
