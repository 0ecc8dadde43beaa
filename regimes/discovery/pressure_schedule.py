"""Schedule of a gated training: pressure over time, and the step size of the gates."""

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
MIN_GATED_INPUTS = 8  # smallest number of inputs per batch with sampled gates


@dataclass(frozen=True)
class PressureSchedule:
    """Pressure and gate step sizes over a training.

    Attributes:
        pressure: settings of the pressure.
        timeline: schedule of the weights' training.
    """

    pressure: Pressure
    timeline: TrainingSchedule

    def epochs(self, share: float) -> int:
        """Return a share of the training in whole epochs."""
        return round(share * self.timeline.last_epoch)

    @property
    def settle_epoch(self) -> int:
        """Number of epochs after which the structure is fixed: at least one, at most all but the last."""
        return max(1, min(self.epochs(self.pressure.settle), self.timeline.last_epoch - 1))

    def start(self, weight: float) -> float:
        """Return the initial gate probability: 1 (not trained) if there is no pressure of this weight."""
        return self.pressure.start if self.pressure.nu and weight else 1.0

    def strength(self, step: int) -> float:
        """Return the share of the full pressure at a step: 0 during warm-up, a linear ramp, then 1."""
        per = self.timeline.steps_per_epoch
        since = step - self.epochs(self.pressure.warm) * per
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / max(1, self.epochs(self.pressure.ramp) * per))

    def is_check(self, step: int) -> bool:
        """Return whether removable gates are looked for after this step."""
        return (step + 1) % max(1, self.timeline.steps_per_epoch // CHECKS_PER_EPOCH) == 0

    def gated_inputs(self, inputs: int) -> int:
        """Return the number of inputs per batch used to estimate gate gradients, at least `MIN_GATED_INPUTS`."""
        return min(inputs, max(MIN_GATED_INPUTS, round(self.pressure.drawn * inputs)))

    def unit_pressure(self, slope: Tensor) -> Tensor:
        """Return ``r = nu 2 (1 - alpha) dC/dtheta``."""
        return self.pressure.nu * 2 * (1 - self.pressure.alpha) * slope

    def block_pressure(self, slope: Tensor) -> Tensor:
        """Return ``r = nu 2 alpha dC/drho``."""
        return self.pressure.nu * 2 * self.pressure.alpha * slope

    def gate_steps(self, graph: PrunableGraph, complexity: Complexity, full: Size) -> tuple[float, float]:
        """Return the step sizes of the units' and the blocks' gate probabilities.

        With them an average gate without effect falls from ``start`` to 0 in the share ``fall`` of the training.

        Raises:
            UserError: there is pressure, but the network has nothing that it acts on.
        """
        ones = [
            torch.ones(count, dtype=torch.float64, device=complexity.kernel.device)
            for count in (graph.units, len(graph.blocks))
        ]
        units, blocks = complexity.gradient(ones[0], ones[1], full, self.pressure.kappa)
        fall = max(1, self.epochs(self.pressure.fall)) * self.timeline.steps_per_epoch

        def step(pressures: Tensor) -> float:
            mean = float(pressures.mean()) if len(pressures) else 0.0
            return self.pressure.start / (fall * mean) if mean else 0.0

        found = step(self.unit_pressure(units)), step(self.block_pressure(blocks))
        if self.pressure.nu and not any(found):
            what = "residual block" if self.pressure.alpha == 1 else "removable unit"
            raise UserError(f"alpha = {self.pressure.alpha:g} has no effect: this network has no {what}; change alpha")
        return found
