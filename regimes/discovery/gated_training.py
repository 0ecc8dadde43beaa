"""One training that makes its network smaller on the way: weights by SGD, gates by projected SGD, removal."""

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
from regimes.discovery import ESTIMATORS
from regimes.discovery.complexity import Complexity
from regimes.discovery.gate_state import GateState, Removal, guard_removal
from regimes.discovery.gates import GateDraw, draw, fixed, partly
from regimes.discovery.pressure_schedule import PressureSchedule
from regimes.discovery.prunable_graph import widths
from regimes.discovery.removal_criterion import block_norms, may_leave, unit_norms
from regimes.discovery.shrinking_network import ShrinkingNetwork
from regimes.discovery.trace_graph import anatomy_of
from regimes.landscape.error import evaluating, images_at_once, mistakes
from regimes.models.build import seeded
from regimes.registry import load
from regimes.training.batches import BatchStream
from regimes.training.precision import arithmetic
from regimes.training.schedule import TrainingSchedule

Row = dict[str, Any]
BLOCK_SHARE = 0.3  # of a new exact difference in the running one
JUDGED = 8  # batches by which the last decision on a block is taken


class GatedTraining(ShrinkingNetwork):
    """A training in progress.

    Args:
        model: with fresh weights, on the data's device; stays as it is.
        data: on one device.
        recipe: how the weights are trained; as for a dense network.
        pressure: how hard the network is pressed.
        role: names the random stream; same role, same network.
        precision: of the steps, a name in `PRECISIONS`.
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
        super().__init__(model, anatomy_of(model, data.train.inputs[:2]), recipe)
        self.data, self.role, self.precision = data, role, precision
        timeline = TrainingSchedule(recipe, len(data.train.targets))
        self.stream = BatchStream(role, timeline, data.train, load(AUGMENTATIONS, recipe.augment, "augmentation"))
        self.course = PressureSchedule(pressure, timeline)
        self.estimate: Callable[[Tensor, Tensor], Tensor] = load(ESTIMATORS, pressure.estimator, "estimator")
        self.rates = self.course.steps(self.full_anatomy, Complexity(self.full_anatomy), self.full)
        self.message = ""
        self.diverged = False
        self.history: list[Row] = []
        units = GateState.of(self.full_anatomy.units, self.course.start(1 - pressure.alpha), self.device)
        blocks = GateState.of(len(self.full_anatomy.blocks), self.course.start(pressure.alpha), self.device)
        self.build(units, blocks, settled=not any(self.rates))
        self.guess = data.guess or self.error(data.val)  # of numbers: the untrained network's
        self.good = (0, self.tensors())

    # -- one epoch --------------------------------------------------------------------------------------------------

    def epoch(self, number: int) -> Row:
        """Train one scheduled epoch, remove what may leave, and say how things stand."""
        started = time.perf_counter()
        steps = self.course.timeline.steps_per_epoch
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.train()
        with seeded(0):
            for step, inputs, targets in self.stream.batches(number * steps, (number + 1) * steps):
                total += self._step(step, inputs, targets)
        self.diverged = not bool(total.isfinite())
        if not self.settled and not self.diverged and number + 1 >= self.course.settles:
            self._settle(number + 1)
        seconds = time.perf_counter() - started
        row = {"epoch": number + 1, "train_loss": float(total) / steps, **self._standing(), "seconds": seconds}
        self.history.append(row)
        best = min(each["val_error"] for each in self.history)
        if not self.settled and row["val_error"] <= (best + self.guess) / 2:
            self.good = (number + 1, self.tensors())
        return row

    def _step(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        drawn = None if self.settled else self._in_part(self._drawn(step, len(targets)))
        rate = self.course.timeline.learning_rate(step)
        value = self.stepper(lambda: self._loss(step, inputs, targets, drawn), rate)
        if drawn is not None:
            self._learn(step, inputs, targets, drawn)
            if self.course.strength(step) > 0 and self.course.is_check(step):
                self._check(step)
        return value

    def _loss(self, step: int, inputs: Tensor, targets: Tensor, drawn: GateDraw | None) -> Tensor:
        torch.manual_seed(self.stream.noise(step))  # dropout draws the same in every pass of a step
        with arithmetic(self.precision, self.device):
            if drawn is None or self.gates is None:
                answers = self.model(inputs)
            else:
                drawn.units.grad = drawn.blocks.grad = None  # of SAM's first pass
                with self.gates.at(drawn):
                    answers = self.model(inputs)
        value: Tensor = self.recipe.training_loss(answers.to(inputs.dtype), targets)
        return value

    def _in_part(self, drawn: GateDraw) -> GateDraw:
        """Gates for the share of a batch that tells what they are worth; the rest is trained as the network will be."""
        return partly(drawn, self.course.told_by(len(drawn.units)), self.units.chance > 0.5, self.blocks.chance > 0.5)

    def _drawn(self, step: int, inputs: int, what: str = "gates") -> GateDraw:
        generator = torch.Generator(self.device).manual_seed((seed_of(*self.role, what) + step) % 2**63)
        return draw(self.units.chance, self.blocks.chance, inputs, generator)

    # -- gates ------------------------------------------------------------------------------------------------------

    def _learn(self, step: int, inputs: Tensor, targets: Tensor, drawn: GateDraw) -> None:
        """Estimate what gates are worth and, under pressure, move them."""
        pressure, strength = self.course.pressure, self.course.strength(step)
        share = 2 / (self.course.timeline.steps_per_epoch + 1)
        unit_rate, block_rate = self.rates
        told = self.course.told_by(len(targets))
        if unit_rate and drawn.units.grad is not None:
            derivatives = len(targets) * drawn.units.grad[:told]
            self.units.learn(self.estimate(derivatives, drawn.units[:told].detach()), share)
        if block_rate:
            self._learn_blocks(step, inputs, targets, drawn, share)
        if strength:
            slopes = self.complexity.pull(self.units.chance, self.blocks.chance, self.full, pressure.kappa)
            self.pressures = self.course.on_units(slopes[0]) * strength, self.course.on_blocks(slopes[1]) * strength
            for side, rate, pressed in zip((self.units, self.blocks), self.rates, self.pressures, strict=True):
                if rate:
                    side.move(rate, pressed)

    def _learn_blocks(self, step: int, inputs: Tensor, targets: Tensor, drawn: GateDraw, share: float) -> None:
        pressure = self.course.pressure
        if pressure.blocks != "exact":
            if drawn.blocks.grad is not None:
                estimate, told = load(ESTIMATORS, pressure.blocks, "estimator"), self.course.told_by(len(targets))
                slopes = len(targets) * drawn.blocks.grad[:told]
                self.blocks.learn(estimate(slopes, drawn.blocks[:told].detach()), share)
            return
        alive = (~self.blocks.gone).nonzero().flatten().tolist()
        turn, wait = divmod(step, pressure.every)
        if wait or not alive:
            return
        number = alive[turn % len(alive)]
        worth = self.blocks.worth[number]
        difference = self._difference(number, step, inputs, targets, drawn)
        self.blocks.worth[number] = worth + BLOCK_SHARE * (difference - worth)

    @torch.no_grad()
    def _difference(self, number: int, step: int, inputs: Tensor, targets: Tensor, drawn: GateDraw) -> Tensor:
        """The loss of a batch with a block on for all inputs, less the loss with it off for all."""
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
        norms = unit_norms(self.model, self.anatomy), block_norms(self.model, self.anatomy)
        ask_units = units.check(may_leave(units.chance, units.worth, norms[0], self.pressures[0], decay))
        ask_blocks = blocks.check(may_leave(blocks.chance, blocks.worth, norms[1], self.pressures[1], decay))
        self._go(guard_removal(self.anatomy, units, blocks, ask_units, ask_blocks))

    def _go(self, leaving: Removal) -> None:
        """Let leave; where nothing would be left, give in."""
        if leaving.nothing:
            self._give_in(leaving)
        else:
            self.remove(leaving)

    def _settle(self, epoch: int) -> None:
        """The final rule: a unit's gate above one half stays for good, every other leaves; no gates from here on.

        Blocks are decided by exact differences of the loss.
        """
        ask_units = self.units.chance <= 0.5
        ask_blocks = self._not_worth_it(ask_units, epoch) if self.rates[1] else torch.zeros_like(self.blocks.gone)
        self._go(guard_removal(self.anatomy, self.units, self.blocks, ask_units, ask_blocks))
        self.settle()

    @torch.no_grad()
    def _not_worth_it(self, ask_units: Tensor, epoch: int) -> Tensor:
        """Blocks without which the loss rises by less than their pressure, the least worth first, one after another."""
        steps = self.course.timeline.steps_per_epoch
        batches = list(self.stream.batches(epoch * steps, epoch * steps + min(JUDGED, steps)))
        none = torch.zeros_like(self.blocks.gone)
        leaving = guard_removal(self.anatomy, self.units, self.blocks, ask_units, none)
        units, blocks = (~(self.units.gone | leaving.units)).float(), (~(self.blocks.gone | leaving.blocks)).float()

        def loss() -> Tensor:
            with self.stepper.statistics_frozen():
                return torch.stack([self._loss(*batch, fixed(units, blocks)) for batch in batches]).mean()

        now = loss()
        for number in self.blocks.worth.argsort(descending=True).tolist():
            if blocks[number]:
                slopes = self.complexity.pull(units, blocks, self.full, self.course.pressure.kappa)
                blocks[number] = 0
                without = loss()
                if now - without + self.course.on_blocks(slopes[1])[number] < 0:
                    blocks[number] = 1
                else:
                    now = without
        return blocks == 0

    def _give_in(self, leaving: Removal) -> None:
        """Go back to the network of the last good epoch and leave it as large as it was."""
        epoch, tensors = self.good
        self.restore(tensors, settled=True)
        self.settle()
        what = ", ".join(leaving.spared) or "any block"
        kept = f"the network of epoch {epoch} is kept" if epoch else "the whole network is kept, from fresh weights"
        self.message = (
            f"nu = {self.course.pressure.nu:g} would leave nothing of {what}; {kept}, "
            f"{self.units.alive} units, {self.blocks.alive} blocks; ask for a smaller nu"
        )

    # -- looking ----------------------------------------------------------------------------------------------------

    def _standing(self) -> Row:
        size = self.complexity(self.units.chance, self.blocks.chance)
        return {
            "val_error": self.error(self.data.val),
            "macs": float(size.macs / self.full.macs),
            "params": float(size.params / self.full.params),
            "units": self.units.alive,
            "blocks": self.blocks.alive,
            "widths": {name: left for name, (left, _) in widths(self.full_anatomy, self.units.gone).items()},
        }

    def error(self, split: Split) -> float:
        """The error over a split; while there are gates, of the network under one draw for every input."""
        size = images_at_once(split.inputs)
        wrong = []
        with evaluating(self.model):
            parts = zip(split.inputs.split(size), split.targets.split(size), strict=True)
            for number, (inputs, targets) in enumerate(parts):
                if self.gates is None:
                    answers = self.model(inputs)
                else:
                    with self.gates.at(self._drawn(number, len(targets), "judged")):
                        answers = self.model(inputs)
                wrong.append(mistakes(answers, targets, self.recipe.loss_fn))
        return float(torch.cat(wrong).double().mean())
