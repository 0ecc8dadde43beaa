"""Training recipes: every setting that training depends on, and named defaults."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    field_validator,
    model_serializer,
    model_validator,
)

from regimes.data import AUGMENTATIONS
from regimes.losses import LOSSES
from regimes.registry import lookup, source_id

if TYPE_CHECKING:
    from regimes.losses.tasks import ErrorFunction


def _file_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]{0,99}", text):
        raise ValueError("must be at most 100 letters, digits, _ . and -, and begin with a letter, a digit or _")
    return text


# Strict: "0.1" is not a number and true is not 1.
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(gt=0, lt=1)]
ShareOrZero = Annotated[float, Strict(), Field(ge=0, lt=1)]
Count = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
Batch = Annotated[int, Strict(), Field(ge=2, le=1_000_000_000)]
Flag = Annotated[bool, Strict()]
Name = Annotated[str, Strict(), AfterValidator(_file_name)]  # of the folder of a run
LATER_FIELDS = ("error", "optimizer", "beta1", "beta2", "eps", "warmup", "clip_norm", "train")  # younger than keys
LOOP_ARGUMENTS = ("model", "data", "recipe", "seed", "mask", "start", "state")  # of a training loop of one's own
USED_BY = {  # the optimisers that use a field; all use the fields that are not named here
    "momentum": ("sgd", "muon"),
    "nesterov": ("sgd", "muon"),
    "beta1": ("adam", "adamw", "muon"),
    "beta2": ("adam", "adamw", "muon"),
    "eps": ("adam", "adamw", "muon"),
}


class Section(BaseModel):
    """A frozen table of a configuration file: no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorTable(Section):
    """An error, or a score, of one's own; see `regimes.ErrorFunction`.

    Attributes:
        function: import path of ``(outputs, targets) -> number`` over a whole split.
        name: name for captions; "": the function's.
        unit: unit of the value; "1" for errors between 0 and 1, any other text for errors without such bounds.
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
        optimizer: "sgd"; "adam"; "adamw"; or "muon" for weight matrices and convolutions of hidden layers, with AdamW
            for everything else. Weight decay is decoupled in "adamw" and "muon", a gradient of L2 in "sgd" and "adam".
        beta1: decay rate of Adam's mean of the gradient. ``betas = (beta1, beta2)`` sets both.
        beta2: decay rate of Adam's mean of the squared gradient.
        eps: constant in Adam's denominator.
        schedule: "step": times ``gamma`` at each of ``milestones``; "cosine" and "linear": to 0 at the last epoch, from
            the end of the warm-up on; "constant".
        warmup: fraction of ``epochs`` over which the learning rate rises linearly to its value in the schedule. A
            fraction, like the milestones, so that it suits shorter trainings with the same recipe too: a search's
            proxies, the rounds of gradual pruning.
        milestones: fractions of ``epochs``.
        gamma: factor at a milestone.
        momentum: momentum of SGD and Muon.
        nesterov: whether to use Nesterov momentum.
        weight_decay: weight decay, applied to every parameter.
        sam_rho: radius of sharpness-aware minimisation (SAM) around the optimiser; 0: none.
        clip_norm: largest norm of the gradient of all parameters together, which is scaled down to it; 0: no limit.
        loss: a name in `LOSSES` or the import path of ``(outputs, targets) -> mean loss``.
        error: an error function of one's own, as an import path or a table (`ErrorTable`); None: the share of wrong
            predictions where outputs, targets and loss belong to a classification, else the loss.
        label_smoothing: label smoothing of the training loss; cross-entropy only.
        augment: a name in `AUGMENTATIONS`, or an import path.
        stop: epoch at which training stops early, the schedule unchanged; None: at the end. Set by the epochs knob,
            not in a file.
        train: import path of a training loop of one's own, which may read any of these fields, see
            `regimes.training.custom_loop_engine`; "": the loop described by them.
        last: number of last epochs over which test and validation error are averaged (never the best epoch).
    """

    epochs: Count = 160
    batch_size: Batch = 128
    epoch_batch: Batch | None = None
    learning_rate: Positive = 0.1
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    beta1: ShareOrZero = 0.9
    beta2: ShareOrZero = 0.999
    eps: Positive = 1e-8
    schedule: Literal["step", "cosine", "linear", "constant"] = "step"
    warmup: ShareOrZero = 0.0
    milestones: tuple[Share, ...] = (0.5, 0.75)
    gamma: Positive = 0.1
    momentum: ShareOrZero = 0.9
    nesterov: Flag = False
    weight_decay: NonNegative = 1e-4
    sam_rho: NonNegative = 0.0
    clip_norm: NonNegative = 0.0
    loss: str = "cross-entropy"
    error: ErrorTable | None = None
    label_smoothing: ShareOrZero = 0.0
    augment: str = "crop-flip"
    stop: Count | None = None
    train: Annotated[str, Field(pattern="^$|:")] = ""
    last: Count = 5

    @field_validator("error", mode="before")
    @classmethod
    def _table(cls, given: Any) -> Any:
        return {"function": given} if isinstance(given, str) else given

    @model_validator(mode="before")
    @classmethod
    def _betas(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "betas" not in given:
            return given
        betas, rest = given["betas"], {name: each for name, each in given.items() if name != "betas"}
        if not isinstance(betas, (list, tuple)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, e.g. [0.9, 0.999], and are {betas!r}")
        return {**rest, "beta1": betas[0], "beta2": betas[1]}

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields that have their defaults, so that keys of older runs stay."""
        fields: dict[str, Any] = dump(self)
        defaults = type(self).model_fields
        return {n: each for n, each in fields.items() if n not in LATER_FIELDS or each != defaults[n].default}

    @property
    def unused(self) -> dict[str, str]:
        """{field that is set although the optimiser does not use it: error message}."""
        if self.train:  # it may use any
            return {}
        fields = type(self).model_fields
        given = [name for name in USED_BY if getattr(self, name) != fields[name].default]
        return {
            name: f"not used by optimizer '{self.optimizer}', only by {', '.join(USED_BY[name])}; remove it"
            for name in given
            if self.optimizer not in USED_BY[name]
        }

    def key_fields(self) -> dict[str, Any]:
        """Return what goes into content keys: all fields but ``stop``, and the sources of user-defined functions."""
        sources = {
            "augment_source": source_id(AUGMENTATIONS, self.augment, "augmentation"),
            "loss_source": source_id(LOSSES, self.loss, "loss"),
        }
        if self.train:
            sources["train_source"] = source_id({}, self.train, "training loop")
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
