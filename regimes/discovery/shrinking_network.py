"""A network in training that can lose units and blocks: its weights, momentum, gates, and what is left of it."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.discovery.complexity import Complexity, size_of
from regimes.discovery.gate_state import GateState, Removal
from regimes.discovery.gates import Gates
from regimes.discovery.prunable_graph import PrunableGraph
from regimes.discovery.removal import remove
from regimes.models.build import load_weights
from regimes.training.optimizer_step import OptimizerStep

Tensors = dict[str, Tensor]


class ShrinkingNetwork:
    """What is left of a network, and the optimiser of that.

    Args:
        whole: the network at the start; it stays as it is, ``model`` is a copy.
        anatomy: of the whole.
        recipe: of the optimiser.

    Attributes:
        model: the network as it is.
        anatomy: of the model; ``full_anatomy`` and ``full`` (its size) are those of the whole.
        units, blocks: their gates.
        settled: whether the structure is fixed; ``gates`` is None then.
    """

    model: nn.Module
    anatomy: PrunableGraph
    units: GateState
    blocks: GateState
    complexity: Complexity
    stepper: OptimizerStep
    gates: Gates | None
    settled: bool

    def __init__(self, whole: nn.Module, anatomy: PrunableGraph, recipe: Recipe) -> None:
        self.whole, self.full_anatomy, self.recipe = whole, anatomy, recipe
        self.device = next(whole.parameters()).device
        self.full = size_of(anatomy)

    def build(
        self,
        units: GateState,
        blocks: GateState,
        settled: bool,
        weights: Tensors | None = None,
        momentum: Tensors | None = None,
    ) -> None:
        """The network with what is left of it, and all that trains it."""
        self.units, self.blocks, self.settled = units, blocks, settled
        self.model = copy.deepcopy(self.whole).train()
        gone = blocks.gone.nonzero().flatten().tolist()
        self.anatomy, _ = remove(self.model, self.full_anatomy, units.gone, gone, {})
        if weights is not None:
            load_weights(self.model, weights)
        self.complexity = Complexity(self.anatomy, self.device)
        self.gates = None if settled else Gates(self.model, self.anatomy)
        self.stepper = OptimizerStep(self.model, self.recipe, None)
        self.stepper.set_momentum(momentum or {})

    def tensors(self) -> Tensors:
        """All that the next step depends on, copied to the CPU."""
        found = {**self.units.tensors("units"), **self.blocks.tensors("blocks")}
        for part, named in (("weights", self.model.state_dict()), ("momentum", self.stepper.momentum())):
            found |= {f"{part}/{name}": each.detach().cpu().clone() for name, each in named.items()}
        return found

    def restore(self, tensors: Tensors, settled: bool) -> None:
        """Go back to what `tensors` said."""
        units, blocks = (GateState.from_tensors(tensors, side, self.device) for side in ("units", "blocks"))
        self.build(units, blocks, settled, _part(tensors, "weights"), _part(tensors, "momentum"))

    def remove(self, leaving: Removal) -> None:
        """Take units and blocks out for good, the optimiser's state included."""
        if not bool(leaving.units.any() or leaving.blocks.any()):
            return
        gone = leaving.blocks.nonzero().flatten().tolist()
        self.anatomy, momentum = remove(self.model, self.anatomy, leaving.units, gone, self.stepper.momentum())
        self.units.leave(leaving.units)
        self.blocks.leave(leaving.blocks)
        self.complexity = Complexity(self.anatomy, self.device)
        self.stepper = OptimizerStep(self.model, self.recipe, None)
        self.stepper.set_momentum(momentum)
        if self.gates is not None:
            self.gates.now(self.anatomy)

    def settle(self) -> None:
        """Fix the structure: what is left is on, and no gate stands on it."""
        if self.gates is not None:
            self.gates.remove()
        self.gates, self.settled = None, True
        self.units.chance, self.blocks.chance = (~self.units.gone).float(), (~self.blocks.gone).float()


def _part(tensors: Tensors, name: str) -> Tensors:
    return {key.removeprefix(f"{name}/"): each for key, each in tensors.items() if key.startswith(f"{name}/")}
