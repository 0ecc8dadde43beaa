"""Training recipes: every setting that training depends on, and named defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from regimes.data import AUGMENTATIONS
from regimes.losses import LOSSES
from regimes.registry import lookup, source_id

# Strict: "0.1" is not a number and true is not 1.
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(gt=0, lt=1)]
ShareOrZero = Annotated[float, Strict(), Field(ge=0, lt=1)]
Count = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
Batch = Annotated[int, Strict(), Field(ge=2, le=1_000_000_000)]
Flag = Annotated[bool, Strict()]


class Section(BaseModel):
    """A frozen table of a configuration file: no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(Section):
    """Settings of one training. The defaults are those of the three-regime study (arXiv 2305.18383).

    Attributes:
        epochs: length of the learning rate schedule in epochs.
        batch_size: images in one step; an incomplete last batch is dropped.
        epoch_batch: batch size that defines the number of steps in an epoch; None: ``batch_size``. The batch-size knob
            sets it to the recipe's own batch size, so that all its values take the same number of steps.
        learning_rate: initial learning rate.
        schedule: "step": times ``gamma`` at each of ``milestones``; "cosine": to 0 at the last epoch; "constant".
        milestones: fractions of ``epochs``.
        gamma: factor at a milestone.
        momentum: momentum of SGD.
        nesterov: whether to use Nesterov momentum.
        weight_decay: weight decay, applied to every parameter.
        sam_rho: radius of sharpness-aware minimisation (SAM); 0: plain SGD.
        loss: a name in `LOSSES` or the import path of ``(outputs, targets) -> mean loss``.
        label_smoothing: label smoothing of the training loss; cross-entropy only.
        augment: a name in `AUGMENTATIONS`, or an import path.
        stop: epoch at which training stops early, the schedule unchanged; None: at the end. Set by the epochs knob,
            not in a file.
        last: number of last epochs over which test and validation error are averaged (never the best epoch).
    """

    epochs: Count = 160
    batch_size: Batch = 128
    epoch_batch: Batch | None = None
    learning_rate: Positive = 0.1
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[Share, ...] = (0.5, 0.75)
    gamma: Positive = 0.1
    momentum: ShareOrZero = 0.9
    nesterov: Flag = False
    weight_decay: NonNegative = 1e-4
    sam_rho: NonNegative = 0.0
    loss: str = "cross-entropy"
    label_smoothing: ShareOrZero = 0.0
    augment: str = "crop-flip"
    stop: Count | None = None
    last: Count = 5

    def key_fields(self) -> dict[str, Any]:
        """Return what goes into content keys: all fields but ``stop``, and the sources of user-defined functions."""
        sources = {
            "augment_source": source_id(AUGMENTATIONS, self.augment, "augmentation"),
            "loss_source": source_id(LOSSES, self.loss, "loss"),
        }
        return {**self.model_dump(exclude={"stop"}), **{name: source for name, source in sources.items() if source}}

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """The loss without label smoothing, used for measurements."""
        function: Callable[..., Any] = lookup(LOSSES, self.loss, "loss")
        return function

    @property
    def training_loss(self) -> Callable[..., Any]:
        """The training loss, with label smoothing."""
        if not self.label_smoothing:
            return self.loss_fn
        return functools.partial(self.loss_fn, label_smoothing=self.label_smoothing)


# Default recipes: the one with the name of the data set, otherwise "three-regime".
RECIPES: dict[str, Recipe] = {
    "three-regime": Recipe(),
    "digits": Recipe(epochs=20, batch_size=64, augment="none"),
    "synthetic": Recipe(epochs=20, batch_size=64, augment="none"),
}
