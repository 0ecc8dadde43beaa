"""Randomness of one training: order of the images, augmentation and dropout seeds.

Every draw is a function of (seed, pass) or (seed, step). No generator state has to be saved, so a resumed training sees
exactly the batches of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regimes.config.keys import seed_of
from regimes.data.augment import Augmentation
from regimes.data.dataset import Split
from regimes.data.inputs import Inputs, input_shape
from regimes.training.schedule import TrainingSchedule


def generator_of(*role: str | int) -> torch.Generator:
    """Return a CPU generator seeded by a role; see `regimes.config.keys.seed_of`."""
    return torch.Generator().manual_seed(seed_of(*role))


@dataclass
class BatchStream:
    """The batches of one training.

    Attributes:
        role: identifies the random stream, e.g. ("retrain", dense seed, retrain seed); same role, same batches.
        schedule: the training's schedule.
        split: the training images, on the device.
        augmentation: the augmentation applied to every batch.
        order: indices of the images in the current pass, in training order.
        draws: random draws of the augmentation in the current pass.
    """

    role: tuple[str | int, ...]
    schedule: TrainingSchedule
    split: Split
    augmentation: Augmentation
    _pass: int = field(default=-1, init=False)
    order: Tensor = field(init=False)
    draws: Tensor = field(init=False)

    def batches(self, first: int, last: int) -> Iterator[tuple[int, Inputs, Tensor]]:
        """Yield (step, inputs, targets) for the steps first, ..., last - 1."""
        size = self.schedule.recipe.batch_size
        for step in range(first, last):
            number, place = divmod(step, self.schedule.steps_per_pass)
            self.start_pass(number)
            here = slice(place * size, (place + 1) * size)
            which = self.order[here]
            yield step, self.augmentation.apply(self.split.inputs[which], self.draws[here]), self.split.targets[which]

    def seed_noise(self, step: int) -> None:
        """Seed the generators that a step's own randomness (dropout) comes from: the CPU's and the data's device's.

        `torch.manual_seed` would also seed every other device, and those that are not initialised at the cost of a
        stack trace.
        """
        seed, device = (seed_of(*self.role, "noise") + step) % 2**63, self.split.targets.device
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)

    def start_pass(self, number: int) -> None:
        """Draw the image order and augmentation of a pass, on the CPU, and move them to the device, unless it has
        begun."""
        if number == self._pass:
            return
        device = self.split.targets.device
        count = len(self.split.targets)
        shape = input_shape(self.split.inputs)
        self.order = torch.randperm(count, generator=generator_of(*self.role, "order", number)).to(device)
        self.draws = self.augmentation.draw(count, shape, generator_of(*self.role, "augment", number)).to(device)
        self._pass = number
