"""Training schedule: steps, passes over the data, epochs, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regimes.config.recipe import Recipe
from regimes.errors import UserError


@dataclass(frozen=True)
class TrainingSchedule:
    """Schedule of a recipe on a number of training images.

    A *pass* goes once through the data in this network's batches. A scheduled *epoch* is a fixed number of steps,
    counted at the recipe's ``epoch_batch``. The two differ only if the batch size is a knob.

    Attributes:
        recipe: the training recipe.
        images: number of training images.

    Raises:
        UserError: the batch size is larger than the number of training images.
    """

    recipe: Recipe
    images: int

    def __post_init__(self) -> None:
        largest = max(self.recipe.batch_size, self.recipe.epoch_batch or 0)
        if largest > self.images:
            raise UserError(
                f"batch size {largest} is larger than the training set of {self.images} images; use a smaller one"
            )

    @property
    def steps_per_pass(self) -> int:
        """Number of whole batches in the data; the remaining images of each pass are dropped."""
        return self.images // self.recipe.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of one scheduled epoch."""
        return self.images // (self.recipe.epoch_batch or self.recipe.batch_size)

    @property
    def horizon(self) -> int:
        """Number of steps of the whole schedule."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def last_epoch(self) -> int:
        """Epoch at which training stops: ``recipe.stop`` if set, else the last one."""
        return self.recipe.stop or self.recipe.epochs

    @property
    def steps_before_decay(self) -> int:
        """Number of steps before the first milestone; of a schedule without milestones, all steps."""
        steps = self.last_epoch * self.steps_per_epoch
        if self.recipe.schedule != "step" or not self.recipe.milestones:
            return steps
        return min(steps, math.ceil(min(self.recipe.milestones) * self.horizon))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step in 0, 1, ..., horizon - 1."""
        recipe = self.recipe
        share = step / self.horizon
        if recipe.schedule == "step":
            return recipe.learning_rate * recipe.gamma ** sum(share >= milestone for milestone in recipe.milestones)
        if recipe.schedule == "cosine":
            return recipe.learning_rate * (1 + math.cos(math.pi * share)) / 2
        return recipe.learning_rate
