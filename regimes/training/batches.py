"""Randomness of one training: which images come when, how they are augmented, what dropout draws.

Every draw is a function of (seed, pass) or (seed, step). There is no generator to carry along, so a training that is
resumed in the middle sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regimes.config.keys import seed_of
from regimes.data.augment import Augmentation
from regimes.data.dataset import Split
from regimes.training.schedule import TrainingSchedule


def generator_of(*role: str | int) -> torch.Generator:
    """A CPU generator for one role; see `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*role))


@dataclass
class BatchStream:
    """The batches of one training.

    Attributes:
        role: names the stream, e.g. ("retrain", dense seed, retrain seed); same role, same batches.
        timeline: of the training.
        split: the training images, on the device.
        augmentation: applied to every batch.
        order, draws: of the pass: the images, and what their augmentation draws.
    """

    role: tuple[str | int, ...]
    timeline: TrainingSchedule
    split: Split
    augmentation: Augmentation
    _pass: int = field(default=-1, init=False)
    order: Tensor = field(init=False)
    draws: Tensor = field(init=False)

    def batches(self, first: int, last: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (step, inputs, targets) for the steps first, ..., last - 1."""
        size = self.timeline.recipe.batch_size
        for step in range(first, last):
            number, place = divmod(step, self.timeline.steps_per_pass)
            if number != self._pass:
                self.turn_to(number)
            here = slice(place * size, (place + 1) * size)
            which = self.order[here]
            yield step, self.augmentation.apply(self.split.inputs[which], self.draws[here]), self.split.targets[which]

    def noise(self, step: int) -> int:
        """The seed that a step's own randomness (dropout) draws from."""
        return (seed_of(*self.role, "noise") + step) % 2**63

    def turn_to(self, number: int) -> None:
        """Draw the order and the augmentation of a pass, and put them on the device."""
        device = self.split.targets.device
        count = len(self.split.targets)
        shape = tuple(self.split.inputs.shape[1:])
        self.order = torch.randperm(count, generator=generator_of(*self.role, "order", number)).to(device)
        self.draws = self.augmentation.draw(count, shape, generator_of(*self.role, "augment", number)).to(device)
        self._pass = number
