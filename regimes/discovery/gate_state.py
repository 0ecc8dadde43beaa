"""What of a network lives: the gates' probabilities, what each is worth, and who has left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from regimes.discovery.prunable_graph import PrunableGraph
from regimes.discovery.removal_criterion import CHECKS


@dataclass
class GateState:
    """The gates of all units, or of all blocks, each tensor (gates,).

    Attributes:
        chance: probability that the gate is on; 0 where it has left, 1 where it is not trained.
        worth: running estimate of the loss with the gate on, less the loss with it off (nats).
        agreed: consecutive checks that found that it may leave.
        gone: whether it has left.
    """

    chance: Tensor
    worth: Tensor
    agreed: Tensor
    gone: Tensor

    @classmethod
    def of(cls, count: int, start: float, device: torch.device) -> GateState:
        """Gates at the start of a training."""
        return cls(
            torch.full((count,), start, device=device),
            torch.zeros(count, device=device),
            torch.zeros(count, dtype=torch.int64, device=device),
            torch.zeros(count, dtype=torch.bool, device=device),
        )

    @property
    def alive(self) -> int:
        """How many have not left."""
        return int((~self.gone).sum())

    def learn(self, worth: Tensor, share: float) -> None:
        """Take a new estimate into the running one."""
        self.worth += share * (worth - self.worth)

    def move(self, step: float, pressure: Tensor) -> None:
        """Projected gradient descent: ``chance <- clip(chance - step (h + r), 0, 1)``."""
        self.chance = (self.chance - step * (self.worth + pressure)).clamp(0, 1).masked_fill(self.gone, 0)

    def check(self, passes: Tensor) -> Tensor:
        """Count a check; returns those that have now passed as many in a row as it takes."""
        self.agreed = torch.where(passes & ~self.gone, self.agreed + 1, 0)
        return self.agreed >= CHECKS

    def leave(self, gone: Tensor) -> None:
        """Take note of who has left."""
        self.gone |= gone
        self.chance, self.worth = (each.masked_fill(self.gone, 0) for each in (self.chance, self.worth))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All of it under names, on the CPU."""
        return {f"{name}/{each.name}": getattr(self, each.name).cpu().clone() for each in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], name: str, device: torch.device) -> GateState:
        """The inverse of `tensors`."""
        return cls(**{each.name: tensors[f"{name}/{each.name}"].to(device) for each in fields(cls)})


@dataclass(frozen=True)
class Removal:
    """Who is to leave now.

    Attributes:
        units, blocks: bool; all of a block's units leave with it.
        spared: names of the groups that would have lost their last unit.
        nothing: whether nothing would be left: all that has gates, or a layer that the network cannot do without.
    """

    units: Tensor
    blocks: Tensor
    spared: tuple[str, ...]
    nothing: bool


def guard_removal(
    anatomy: PrunableGraph, units: GateState, blocks: GateState, ask_units: Tensor, ask_blocks: Tensor
) -> Removal:
    """What may leave of what was asked: a layer keeps its last unit, and a block without any goes as a whole.

    The unit that stays is the likeliest, of several the one of most worth.
    """
    out_units, out_blocks = (ask_units & ~units.gone).clone(), (ask_blocks & ~blocks.gone).clone()
    spared, starved = [], False
    for group in anatomy.groups:
        if group.block is not None and bool(blocks.gone[group.block] | out_blocks[group.block]):
            continue
        here = group.units
        if bool((units.gone[here] | out_units[here]).all()):
            if group.block is not None and group.vital:
                out_blocks[group.block] = True
            else:
                rank = units.chance[here] - 1e-3 * units.worth[here]
                best = rank.masked_fill(units.gone[here], -torch.inf).argmax()
                out_units[group.first + int(best)] = False
                spared.append(group.name)
                starved |= group.vital
    for group in anatomy.groups:
        if group.block is not None and bool(out_blocks[group.block]):
            out_units[group.units] = ~units.gone[group.units]
    beside = any(group.block is None for group in anatomy.groups)  # each of these keeps a unit
    nothing = starved or (not beside and bool((blocks.gone | out_blocks).all()))
    return Removal(out_units, out_blocks, tuple(spared), nothing)
