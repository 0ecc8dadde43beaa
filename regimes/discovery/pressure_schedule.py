"""Time in a discovery: when there is pressure, how much, and how fast gates move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.config.discovery import Pressure
from regimes.discovery.complexity import Complexity, Size
from regimes.discovery.prunable_graph import PrunableGraph
from regimes.errors import UserError
from regimes.training.schedule import TrainingSchedule

CHECKS_PER_EPOCH = 2
FEWEST = 8  # inputs by which a gate is judged


@dataclass(frozen=True)
class PressureSchedule:
    """Pressure and gate steps along a training.

    Attributes:
        pressure: what is asked.
        timeline: of the training.
    """

    pressure: Pressure
    timeline: TrainingSchedule

    def epochs(self, share: float) -> int:
        """A share of the training, in whole epochs."""
        return round(share * self.timeline.last_epoch)

    @property
    def settles(self) -> int:
        """The epoch after which the structure is fixed: at least one, and never the last."""
        return max(1, min(self.epochs(self.pressure.settle), self.timeline.last_epoch - 1))

    def start(self, weight: float) -> float:
        """Probability at which gates begin; those without pressure (of this weight) are not trained: they are on."""
        return self.pressure.start if self.pressure.nu and weight else 1.0

    def strength(self, step: int) -> float:
        """The share of the full pressure at a step: 0 while warm, growing over the ramp, then 1."""
        per = self.timeline.steps_per_epoch
        since = step - self.epochs(self.pressure.warm) * per
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / max(1, self.epochs(self.pressure.ramp) * per))

    def is_check(self, step: int) -> bool:
        """Whether what may leave is looked for after this step."""
        return (step + 1) % max(1, self.timeline.steps_per_epoch // CHECKS_PER_EPOCH) == 0

    def told_by(self, inputs: int) -> int:
        """By how many inputs of a batch gates are judged: a share of it, at least `FEWEST`."""
        return min(inputs, max(FEWEST, round(self.pressure.drawn * inputs)))

    def on_units(self, slope: Tensor) -> Tensor:
        """``r = nu 2 (1 - alpha) dC/dtheta``."""
        return self.pressure.nu * 2 * (1 - self.pressure.alpha) * slope

    def on_blocks(self, slope: Tensor) -> Tensor:
        """``r = nu 2 alpha dC/drho``."""
        return self.pressure.nu * 2 * self.pressure.alpha * slope

    def steps(self, anatomy: PrunableGraph, complexity: Complexity, full: Size) -> tuple[float, float]:
        """Step of the units' and of the blocks' probabilities: an average gate that is worth nothing falls from
        ``start`` to 0 in the share ``fall`` of the training.

        Raises:
            UserError: there is pressure, but nothing that it is on.
        """
        ones = [
            torch.ones(count, dtype=torch.float64, device=complexity.kernel.device)
            for count in (anatomy.units, len(anatomy.blocks))
        ]
        units, blocks = complexity.pull(ones[0], ones[1], full, self.pressure.kappa)
        fall = max(1, self.epochs(self.pressure.fall)) * self.timeline.steps_per_epoch

        def step(pressures: Tensor) -> float:
            mean = float(pressures.mean()) if len(pressures) else 0.0
            return self.pressure.start / (fall * mean) if mean else 0.0

        found = step(self.on_units(units)), step(self.on_blocks(blocks))
        if self.pressure.nu and not any(found):
            what = "residual block" if self.pressure.alpha == 1 else "unit that could leave"
            raise UserError(f"alpha = {self.pressure.alpha:g} presses on nothing: this network has no {what}")
        return found
