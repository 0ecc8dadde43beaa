"""Training recipes: every number that training depends on, and named defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from regimes.data import AUGMENTATIONS
from regimes.losses import LOSSES
from regimes.registry import load, source_id

# Strict: "0.1" is no number and true is no 1.
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(gt=0, lt=1)]
ShareOrZero = Annotated[float, Strict(), Field(ge=0, lt=1)]
Count = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
Batch = Annotated[int, Strict(), Field(ge=2, le=1_000_000_000)]
Yes = Annotated[bool, Strict()]


class Section(BaseModel):
    """A frozen table of a sweep file: no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(Section):
    """How a network is trained. The defaults are those of the three-regime study (arXiv 2305.18383).

    Attributes:
        epochs: the schedule's horizon.
        batch_size: images in one step; the last, smaller batch of a pass is dropped.
        epoch_batch: the batch size at which an epoch is counted; None: ``batch_size``. The batch-size knob sets it to
            the recipe's own, so that all its values take the same number of steps.
        learning_rate: at the start; it changes by ``schedule``.
        schedule: "step": times ``gamma`` at each of ``milestones``; "cosine": to 0 at the horizon; "constant".
        milestones: shares of the horizon.
        gamma: factor at a milestone.
        momentum: of SGD.
        nesterov: whether momentum is Nesterov's.
        weight_decay: on every parameter.
        sam_rho: radius of sharpness-aware minimisation; 0: plain SGD.
        loss: a name in `LOSSES` or the import path of ``(outputs, targets) -> mean loss``.
        label_smoothing: of the training loss, where that is cross-entropy.
        augment: a name in `AUGMENTATIONS`.
        stop: the epoch at which training is stopped early, its schedule unchanged; None: the horizon. Set by the epochs
            knob, not by a file.
        last: epochs over which test and validation error are averaged (never the best epoch).
    """

    epochs: Count = 160
    batch_size: Batch = 128
    epoch_batch: Batch | None = None
    learning_rate: Positive = 0.1
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[Share, ...] = (0.5, 0.75)
    gamma: Positive = 0.1
    momentum: ShareOrZero = 0.9
    nesterov: Yes = False
    weight_decay: NonNegative = 1e-4
    sam_rho: NonNegative = 0.0
    loss: str = "cross-entropy"
    label_smoothing: ShareOrZero = 0.0
    augment: str = "crop-flip"
    stop: Count | None = None
    last: Count = 5

    def science(self) -> dict[str, Any]:
        """All that a training's records rest on but where it stops; one's own augmentation and loss by their source."""
        sources = {
            "augment_source": source_id(AUGMENTATIONS, self.augment, "augmentation"),
            "loss_source": source_id(LOSSES, self.loss, "loss"),
        }
        return {**self.model_dump(exclude={"stop"}), **{name: each for name, each in sources.items() if each}}

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """The loss without label smoothing: what is measured."""
        function: Callable[..., Any] = load(LOSSES, self.loss, "loss")
        return function

    @property
    def training_loss(self) -> Callable[..., Any]:
        """The loss that is trained."""
        if not self.label_smoothing:
            return self.loss_fn
        return functools.partial(self.loss_fn, label_smoothing=self.label_smoothing)


# The recipe a data set is trained with unless the sweep file names another: a recipe called as the data set is that
# data set's own, "three-regime" is everyone else's.
RECIPES: dict[str, Recipe] = {
    "three-regime": Recipe(),
    "digits": Recipe(epochs=20, batch_size=64, augment="none"),
    "synthetic": Recipe(epochs=20, batch_size=64, augment="none"),
}
