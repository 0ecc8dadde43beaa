"""Time in training: steps, passes over the data, scheduled epochs, and the learning rate at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regimes.config.recipe import Recipe
from regimes.errors import UserError


@dataclass(frozen=True)
class TrainingSchedule:
    """The steps of one recipe on ``images`` training images.

    A *pass* is one walk through the data in this network's batches. A scheduled *epoch* is a fixed number of steps,
    counted at the recipe's ``epoch_batch``; the two differ only where the batch size is a knob.

    Attributes:
        recipe: the recipe.
        images: number of training images.
    """

    recipe: Recipe
    images: int

    def __post_init__(self) -> None:
        largest = max(self.recipe.batch_size, self.recipe.epoch_batch or 0)
        if largest > self.images:
            raise UserError(
                f"batch size {largest} is larger than the training set of {self.images} images; take a smaller one"
            )

    @property
    def steps_per_pass(self) -> int:
        """Whole batches in the data; the rest of each pass is dropped."""
        return self.images // self.recipe.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one scheduled epoch."""
        return self.images // (self.recipe.epoch_batch or self.recipe.batch_size)

    @property
    def horizon(self) -> int:
        """Steps of the whole schedule."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def last_epoch(self) -> int:
        """The epoch at which training stops: early, or the horizon."""
        return self.recipe.stop or self.recipe.epochs

    def learning_rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., horizon - 1."""
        recipe = self.recipe
        share = step / self.horizon
        if recipe.schedule == "step":
            return recipe.learning_rate * recipe.gamma ** sum(share >= milestone for milestone in recipe.milestones)
        if recipe.schedule == "cosine":
            return recipe.learning_rate * (1 + math.cos(math.pi * share)) / 2
        return recipe.learning_rate
