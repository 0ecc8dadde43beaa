"""Gated training: weights by SGD, gate probabilities by projected SGD, removal of units and blocks on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regimes.config.discovery import Pressure
from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.data import AUGMENTATIONS
from regimes.data.dataset import Dataset, Split
from regimes.data.inputs import Inputs, call
from regimes.discovery import ESTIMATORS
from regimes.discovery.complexity import Complexity
from regimes.discovery.gate_state import GateState, Removal, guard_removal
from regimes.discovery.gates import GateDraw, constant_gates, draw, with_constant_rest
from regimes.discovery.pressure_schedule import PressureSchedule
from regimes.discovery.prunable_graph import widths
from regimes.discovery.removal_criterion import block_norms, is_removable, unit_norms
from regimes.discovery.shrinking_network import ShrinkingNetwork
from regimes.discovery.trace_graph import trace_graph
from regimes.landscape.error import input_errors, inputs_per_pass, joined_outputs, network_task
from regimes.losses.functions import in_dtype, loss_value
from regimes.losses.tasks import joined_errors
from regimes.models.build import dtype_of, seeded
from regimes.models.eval_mode import eval_mode
from regimes.registry import lookup
from regimes.training.batches import BatchStream
from regimes.training.precision import precision_context
from regimes.training.schedule import TrainingSchedule

Row = dict[str, Any]
BLOCK_UPDATE_SHARE = 0.3  # weight of a new exact difference in the running estimate
SETTLE_BATCHES = 8  # batches for the final decision on blocks


class GatedTraining(ShrinkingNetwork):
    """A gated training in progress.

    Args:
        model: network with fresh weights, on the data's device; it is not changed.
        data: the data set, on one device.
        recipe: training recipe of the weights, as for a dense network.
        pressure: pressure of the complexity.
        role: seed of all random numbers; the same role gives the same network.
        precision: precision of the steps, a name in `PRECISIONS`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        recipe: Recipe,
        pressure: Pressure,
        role: tuple[str | int, ...],
        precision: str = "float32",
    ) -> None:
        self.dtype = dtype_of(model)
        super().__init__(model, trace_graph(model, data.train.inputs[:2]), recipe)
        self.data, self.role, self.precision = data, role, precision
        timeline = TrainingSchedule(recipe, len(data.train.targets))
        self.stream = BatchStream(role, timeline, data.train, lookup(AUGMENTATIONS, recipe.augment, "augmentation"))
        self.schedule = PressureSchedule(pressure, timeline)
        self.estimate: Callable[[Tensor, Tensor], Tensor] = lookup(ESTIMATORS, pressure.estimator, "estimator")
        self.rates = self.schedule.gate_steps(self.full_graph, Complexity(self.full_graph), self.full)
        self.message = ""
        self.diverged = False
        self.history: list[Row] = []
        units = GateState.of(self.full_graph.units, self.schedule.start(1 - pressure.alpha), self.device)
        blocks = GateState.of(len(self.full_graph.blocks), self.schedule.start(pressure.alpha), self.device)
        self.build(units, blocks, settled=not any(self.rates))
        fraction = recipe.error is None and network_task(model, data.val, recipe.loss_fn).fraction
        guess = data.guess if fraction else None
        self.chance_error = guess or self.error(data.val)  # where the error is no fraction: the untrained network's
        self.fallback = (0, self.tensors())

    # -- one epoch --------------------------------------------------------------------------------------------------

    def epoch(self, number: int) -> Row:
        """Train one epoch, remove what is removable, and return the epoch's history row."""
        started = time.perf_counter()
        steps = self.schedule.timeline.steps_per_epoch
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.train()
        with seeded(0):
            for step, inputs, targets in self.stream.batches(number * steps, (number + 1) * steps):
                total += self._step(step, inputs, targets)
        self.diverged = not bool(total.isfinite())
        if not self.settled and not self.diverged and number + 1 >= self.schedule.settle_epoch:
            self._settle(number + 1)
        seconds = time.perf_counter() - started
        row = {"epoch": number + 1, "train_loss": float(total) / steps, **self._summary(), "seconds": seconds}
        self.history.append(row)
        best = min(each["val_error"] for each in self.history)
        if not self.settled and row["val_error"] <= (best + self.chance_error) / 2:
            self.fallback = (number + 1, self.tensors())
        return row

    def _step(self, step: int, inputs: Inputs, targets: Tensor) -> Tensor:
        drawn = None if self.settled else self._gated_part(self._drawn(step, len(targets)))
        rate = self.schedule.timeline.learning_rate(step)
        value = self.stepper(lambda: self._loss(step, inputs, targets, drawn), rate, step)
        if drawn is not None:
            self._learn(step, inputs, targets, drawn)
            if self.schedule.strength(step) > 0 and self.schedule.is_check(step):
                self._check(step)
        return value

    def _loss(self, step: int, inputs: Inputs, targets: Tensor, drawn: GateDraw | None) -> Tensor:
        self.stream.seed_noise(step)  # dropout draws the same in every pass of a step
        with precision_context(self.precision, self.device):
            if drawn is None or self.gates is None:
                answers = call(self.model, inputs)
            else:
                drawn.units.grad = drawn.blocks.grad = None  # of SAM's first pass
                with self.gates.at(drawn):
                    answers = call(self.model, inputs)
        return loss_value(self.recipe.training_loss, in_dtype(answers, self.dtype), targets)

    def _gated_part(self, drawn: GateDraw) -> GateDraw:
        """Restrict sampled gates to the gated share of a batch; the rest has the gates that would be kept now."""
        count = self.schedule.gated_inputs(len(drawn.units))
        return with_constant_rest(drawn, count, self.units.prob > 0.5, self.blocks.prob > 0.5)

    def _drawn(self, step: int, inputs: int, what: str = "gates") -> GateDraw:
        generator = torch.Generator(self.device).manual_seed((seed_of(*self.role, what) + step) % 2**63)
        return draw(self.units.prob, self.blocks.prob, inputs, generator)

    # -- gates ------------------------------------------------------------------------------------------------------

    def _learn(self, step: int, inputs: Inputs, targets: Tensor, drawn: GateDraw) -> None:
        """Estimate the effects of the gates and, under pressure, update their probabilities."""
        pressure, strength = self.schedule.pressure, self.schedule.strength(step)
        share = 2 / (self.schedule.timeline.steps_per_epoch + 1)
        unit_rate, block_rate = self.rates
        count = self.schedule.gated_inputs(len(targets))
        if unit_rate and drawn.units.grad is not None:
            derivatives = len(targets) * drawn.units.grad[:count]
            self.units.update(self.estimate(derivatives, drawn.units[:count].detach()), share)
        if block_rate:
            self._learn_blocks(step, inputs, targets, drawn, share)
        if strength:
            slopes = self.complexity.gradient(self.units.prob, self.blocks.prob, self.full, pressure.kappa)
            on_units, on_blocks = self.schedule.unit_pressure(slopes[0]), self.schedule.block_pressure(slopes[1])
            self.pressures = on_units * strength, on_blocks * strength
            for side, rate, pressed in zip((self.units, self.blocks), self.rates, self.pressures, strict=True):
                if rate:
                    side.step(rate, pressed)

    def _learn_blocks(self, step: int, inputs: Inputs, targets: Tensor, drawn: GateDraw, share: float) -> None:
        pressure = self.schedule.pressure
        if pressure.blocks != "exact":
            if drawn.blocks.grad is not None:
                estimate = lookup(ESTIMATORS, pressure.blocks, "estimator")
                count = self.schedule.gated_inputs(len(targets))
                slopes = len(targets) * drawn.blocks.grad[:count]
                self.blocks.update(estimate(slopes, drawn.blocks[:count].detach()), share)
            return
        alive = (~self.blocks.removed).nonzero().flatten().tolist()
        turn, wait = divmod(step, pressure.every)
        if wait or not alive:
            return
        number = alive[turn % len(alive)]
        effect = self.blocks.effect[number]
        difference = self._difference(number, step, inputs, targets, drawn)
        self.blocks.effect[number] = effect + BLOCK_UPDATE_SHARE * (difference - effect)

    @torch.no_grad()
    def _difference(self, number: int, step: int, inputs: Inputs, targets: Tensor, drawn: GateDraw) -> Tensor:
        """Loss of a batch with a block on for all inputs, minus the loss with it off for all."""
        losses = []
        for gate in (1.0, 0.0):
            blocks = drawn.blocks.detach().clone()
            blocks[:, number] = gate
            with self.stepper.statistics_frozen():
                losses.append(self._loss(step, inputs, targets, GateDraw(drawn.units.detach(), blocks)))
        return losses[0] - losses[1]

    # -- removal ----------------------------------------------------------------------------------------------------

    def _check(self, step: int) -> None:
        decay = self.recipe.weight_decay
        units, blocks = self.units, self.blocks
        norms = unit_norms(self.model, self.graph), block_norms(self.model, self.graph)
        requested_units = units.check(is_removable(units.prob, units.effect, norms[0], self.pressures[0], decay))
        requested_blocks = blocks.check(is_removable(blocks.prob, blocks.effect, norms[1], self.pressures[1], decay))
        self._apply_removal(guard_removal(self.graph, units, blocks, requested_units, requested_blocks))

    def _apply_removal(self, removal: Removal) -> None:
        """Apply the removal, or fall back if it would remove everything."""
        if removal.removes_everything:
            self._fall_back(removal)
        else:
            self.remove(removal)

    def _settle(self, epoch: int) -> None:
        """Fix the structure: units with a gate probability above one half are kept, all others removed.

        Blocks are decided by exact differences of the loss.
        """
        requested_units = self.units.prob <= 0.5
        requested_blocks = (
            self._blocks_below_cost(requested_units, epoch) if self.rates[1] else torch.zeros_like(self.blocks.removed)
        )
        self._apply_removal(guard_removal(self.graph, self.units, self.blocks, requested_units, requested_blocks))
        self.settle()

    @torch.no_grad()
    def _blocks_below_cost(self, requested_units: Tensor, epoch: int) -> Tensor:
        """Greedily drop blocks whose removal increases the loss by less than their penalty, the least useful first."""
        steps = self.schedule.timeline.steps_per_epoch
        batches = list(self.stream.batches(epoch * steps, epoch * steps + min(SETTLE_BATCHES, steps)))
        none = torch.zeros_like(self.blocks.removed)
        removal = guard_removal(self.graph, self.units, self.blocks, requested_units, none)
        units = (~(self.units.removed | removal.units)).float()
        blocks = (~(self.blocks.removed | removal.blocks)).float()

        def loss() -> Tensor:
            with self.stepper.statistics_frozen():
                return torch.stack([self._loss(*batch, constant_gates(units, blocks)) for batch in batches]).mean()

        now = loss()
        for number in self.blocks.effect.argsort(descending=True).tolist():
            if blocks[number]:
                slopes = self.complexity.gradient(units, blocks, self.full, self.schedule.pressure.kappa)
                blocks[number] = 0
                without = loss()
                if now - without + self.schedule.block_pressure(slopes[1])[number] < 0:
                    blocks[number] = 1
                else:
                    now = without
        return blocks == 0

    def _fall_back(self, removal: Removal) -> None:
        """Restore the network of the fallback epoch and keep its structure."""
        epoch, tensors = self.fallback
        self.restore(tensors, settled=True)
        self.settle()
        what = ", ".join(removal.spared) or "the residual blocks"
        kept = f"the network of epoch {epoch} is kept" if epoch else "the whole network is kept, with fresh weights"
        self.message = (
            f"nu = {self.schedule.pressure.nu:g} would remove all of {what}; {kept}, "
            f"{self.units.alive} units, {self.blocks.alive} blocks; use a smaller nu"
        )

    # -- evaluation -------------------------------------------------------------------------------------------------

    def _summary(self) -> Row:
        size = self.complexity(self.units.prob, self.blocks.prob)
        return {
            "val_error": self.error(self.data.val),
            "macs": float(size.macs / self.full.macs),
            "params": float(size.params / self.full.params),
            "units": self.units.alive,
            "blocks": self.blocks.alive,
            "widths": {name: left for name, (left, _) in widths(self.full_graph, self.units.removed).items()},
        }

    def error(self, split: Split) -> float:
        """Return the error over a split; before the structure is fixed, with gates sampled for every input."""
        own, size = self.recipe.error_function, inputs_per_pass(split.inputs)
        wrong, whole = [], []
        with eval_mode(self.model):
            parts = zip(split.inputs.split(size), split.targets.split(size), strict=True)
            for number, (inputs, targets) in enumerate(parts):
                if self.gates is None:
                    answers = call(self.model, inputs)
                else:
                    with self.gates.at(self._drawn(number, len(targets), "judged")):
                        answers = call(self.model, inputs)
                if own is None:
                    wrong.append(input_errors(answers, targets, self.recipe.loss_fn))
                else:
                    whole.append(answers)
        if own is not None:
            return own(joined_outputs(whole), split.targets)
        return float(joined_errors(wrong).mean())
