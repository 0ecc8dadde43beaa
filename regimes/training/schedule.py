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
    def warmup_steps(self) -> int:
        """Number of steps of the warm-up; at the last one the learning rate has its full value."""
        return round(self.recipe.warmup * self.horizon)

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

    @property
    def rate_before_decay(self) -> float:
        """Sum of the learning rates of those steps."""
        if self.recipe.schedule in ("step", "constant") and not self.recipe.warmup:
            return self.recipe.learning_rate * self.steps_before_decay
        return math.fsum(self.learning_rate(step) for step in range(self.steps_before_decay))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step in 0, 1, ..., horizon - 1."""
        warmup = self.warmup_steps
        if step < warmup:
            return self._decayed(step) * (step + 1) / warmup
        return self._decayed(step)

    def _decayed(self, step: int) -> float:
        """The learning rate without the warm-up, at whose end cosine and linear schedules begin."""
        recipe, warmup = self.recipe, self.warmup_steps
        if recipe.schedule == "step":
            share = step / self.horizon
            return recipe.learning_rate * recipe.gamma ** sum(share >= milestone for milestone in recipe.milestones)
        share = max(0, step - warmup) / max(1, self.horizon - warmup)
        if recipe.schedule == "cosine":
            return recipe.learning_rate * (1 + math.cos(math.pi * share)) / 2
        if recipe.schedule == "linear":
            return recipe.learning_rate * (1 - share)
        return recipe.learning_rate
