"""Network that loses units and blocks during training: weights, momentum, gates and prunable graph."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.discovery.complexity import Complexity, size_of
from regimes.discovery.gate_state import GateState, Removal
from regimes.discovery.gates import Gates
from regimes.discovery.prunable_graph import PrunableGraph
from regimes.discovery.removal import remove
from regimes.errors import UserError
from regimes.models.build import load_weights
from regimes.training.optimizer_step import OptimizerStep

Tensors = dict[str, Tensor]


class ShrinkingNetwork:
    """A network in training from which units and blocks are removed, with its optimizer.

    Args:
        whole: the network at the start; it is not changed, ``model`` is a copy.
        graph: its units, blocks and layers.
        recipe: recipe of the optimizer.

    Attributes:
        model: the current network.
        graph: its prunable graph; ``full_graph`` and ``full`` (the size) are those of the whole network.
        units, blocks: state of their gates.
        settled: whether the structure is fixed; ``gates`` is None then.
    """

    model: nn.Module
    graph: PrunableGraph
    units: GateState
    blocks: GateState
    complexity: Complexity
    stepper: OptimizerStep
    gates: Gates | None
    settled: bool

    def __init__(self, whole: nn.Module, graph: PrunableGraph, recipe: Recipe) -> None:
        if recipe.train:
            raise UserError(f"recipe.train = '{recipe.train}': discovery trains with a loop of its own; remove it")
        self.whole, self.full_graph, self.recipe = whole, graph, recipe
        self.device = next(whole.parameters()).device
        self.full = size_of(graph)

    def build(
        self,
        units: GateState,
        blocks: GateState,
        settled: bool,
        weights: Tensors | None = None,
        momentum: Tensors | None = None,
    ) -> None:
        """Build the current network, its gates and its optimizer.

        Args:
            units, blocks: state of the gates; removed units and blocks are taken out.
            settled: whether the structure is fixed.
            weights, momentum: tensors to load; None: those of the whole network, and no momentum.
        """
        self.units, self.blocks, self.settled = units, blocks, settled
        self.model = copy.deepcopy(self.whole).train()
        gone = blocks.removed.nonzero().flatten().tolist()
        self.graph, _ = remove(self.model, self.full_graph, units.removed, gone, {})
        if weights is not None:
            load_weights(self.model, weights)
        self.complexity = Complexity(self.graph, self.device)
        self.gates = None if settled else Gates(self.model, self.graph)
        self.stepper = OptimizerStep(self.model, self.recipe, None)
        self.stepper.set_momentum(momentum or {})

    def tensors(self) -> Tensors:
        """Return everything that the next step depends on, copied to the CPU."""
        found = {**self.units.tensors("units"), **self.blocks.tensors("blocks")}
        for part, named in (("weights", self.model.state_dict()), ("momentum", self.stepper.momentum())):
            found |= {f"{part}/{name}": each.detach().cpu().clone() for name, each in named.items()}
        return found

    def restore(self, tensors: Tensors, settled: bool) -> None:
        """Restore the state returned by `tensors`."""
        units, blocks = (GateState.from_tensors(tensors, side, self.device) for side in ("units", "blocks"))
        self.build(units, blocks, settled, _part(tensors, "weights"), _part(tensors, "momentum"))

    def remove(self, removal: Removal) -> None:
        """Remove units and blocks from the network and the optimizer's state."""
        if not bool(removal.units.any() or removal.blocks.any()):
            return
        gone = removal.blocks.nonzero().flatten().tolist()
        self.graph, momentum = remove(self.model, self.graph, removal.units, gone, self.stepper.momentum())
        self.units.mark_removed(removal.units)
        self.blocks.mark_removed(removal.blocks)
        self.complexity = Complexity(self.graph, self.device)
        self.stepper = OptimizerStep(self.model, self.recipe, None)
        self.stepper.set_momentum(momentum)
        if self.gates is not None:
            self.gates.update(self.graph)

    def settle(self) -> None:
        """Fix the structure: everything that remains is on, and the gates are removed."""
        if self.gates is not None:
            self.gates.remove()
        self.gates, self.settled = None, True
        self.units.prob, self.blocks.prob = (~self.units.removed).float(), (~self.blocks.removed).float()


def _part(tensors: Tensors, name: str) -> Tensors:
    return {key.removeprefix(f"{name}/"): each for key, each in tensors.items() if key.startswith(f"{name}/")}
