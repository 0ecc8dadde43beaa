"""Training recipes: every setting that training depends on, and named defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    field_validator,
    model_serializer,
)

from regimes.data import AUGMENTATIONS
from regimes.losses import LOSSES
from regimes.registry import lookup, source_id

if TYPE_CHECKING:
    from regimes.losses.tasks import ErrorFunction

# Strict: "0.1" is not a number and true is not 1.
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(gt=0, lt=1)]
ShareOrZero = Annotated[float, Strict(), Field(ge=0, lt=1)]
Count = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
Batch = Annotated[int, Strict(), Field(ge=2, le=1_000_000_000)]
Flag = Annotated[bool, Strict()]
LATER_FIELDS = ("error",)  # fields that are younger than the first keys


class Section(BaseModel):
    """A frozen table of a configuration file: no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorTable(Section):
    """An error, or a score, of one's own; see `regimes.ErrorFunction`.

    Attributes:
        function: import path of ``(outputs, targets) -> number`` over a whole split.
        name: name for captions; "": the function's.
        unit: unit of the value; "1" for fractions.
        better: whether a lower or a higher value is better.
        best: largest possible score, from which the error is counted if higher is better.
    """

    function: Annotated[str, Field(pattern=":")]
    name: str = ""
    unit: str = "1"
    better: Literal["lower", "higher"] = "lower"
    best: Annotated[float, Strict(), Field(allow_inf_nan=False)] = 1.0


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
        error: an error function of one's own, as an import path or a table (`ErrorTable`); None: the share of wrong
            predictions where outputs, targets and loss belong to a classification, else the loss.
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
    error: ErrorTable | None = None
    label_smoothing: ShareOrZero = 0.0
    augment: str = "crop-flip"
    stop: Count | None = None
    last: Count = 5

    @field_validator("error", mode="before")
    @classmethod
    def _table(cls, given: Any) -> Any:
        return {"function": given} if isinstance(given, str) else given

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields that have their defaults, so that keys of older runs stay."""
        fields: dict[str, Any] = dump(self)
        defaults = type(self).model_fields
        return {n: each for n, each in fields.items() if n not in LATER_FIELDS or each != defaults[n].default}

    def key_fields(self) -> dict[str, Any]:
        """Return what goes into content keys: all fields but ``stop``, and the sources of user-defined functions."""
        sources = {
            "augment_source": source_id(AUGMENTATIONS, self.augment, "augmentation"),
            "loss_source": source_id(LOSSES, self.loss, "loss"),
        }
        if self.error is not None:
            sources["error_source"] = source_id({}, self.error.function, "error")
        fields = self.model_dump(exclude={"stop"})
        return {**fields, **{name: source for name, source in sources.items() if source}}

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """The loss without label smoothing, used for measurements."""
        function: Callable[..., Any] = lookup(LOSSES, self.loss, "loss")
        return function

    @property
    def error_function(self) -> ErrorFunction | None:
        """The error function of one's own; None: inferred, see `regimes.losses.tasks.infer_task`."""
        from regimes.losses.tasks import ErrorFunction

        if self.error is None:
            return None
        function = lookup({}, self.error.function, "error")
        name = self.error.name or self.error.function.rpartition(":")[2]
        return ErrorFunction(function, name, self.error.unit, self.error.better, self.error.best)

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
