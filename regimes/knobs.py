"""Temperature-like training knobs: epochs, batch size, learning rate, weight decay, SAM rho, momentum, Adam's betas.

A `Knob` describes its unit, allowed values, hotter direction and effect on the training recipe. A new knob is a `Knob`
in this module and a line in `KNOBS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Value = int | float
MAX_VALUE = 1e38  # about the largest float32; much larger integers cannot be converted to float


class RecipeLike(Protocol):
    """Part of a recipe that knobs read; the recipe itself is `regimes.config.recipe.Recipe`."""

    @property
    def batch_size(self) -> int:
        """Number of inputs per batch."""
        ...


@dataclass(frozen=True)
class Knob:
    """A temperature-like training knob (Zhou et al. 2023, arXiv 2305.18383).

    Attributes:
        name: name of the knob, and of its dimension in a record.
        unit: unit of its values.
        long_name: name for axes and reports.
        hotter: whether "larger" or "smaller" values make training noisier.
        kind: type of its values.
        low: smallest value.
        low_open: whether ``low`` itself is excluded.
        changes: ``(recipe, value) -> {field: new value}``, the changes to the dense training recipe. Knobs never change
            the retraining recipe.
    """

    name: str
    unit: str
    long_name: str
    hotter: Literal["larger", "smaller"]
    kind: type[int] | type[float]
    low: Value
    low_open: bool
    changes: Callable[[RecipeLike, Value], dict[str, Any]]

    @property
    def allowed(self) -> str:
        """Description of the allowed values."""
        noun = "whole numbers" if self.kind is int else "numbers"
        return f"{noun} {'above' if self.low_open else 'from'} {self.low:g}{'' if self.low_open else ' up'}"

    def accepts(self, value: object) -> bool:
        """Return whether a value from a sweep file is allowed for this knob."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MAX_VALUE:
            return False
        if self.kind is int and value != int(value):
            return False
        return value > self.low if self.low_open else value >= self.low


# Early stopping under one fixed schedule: a single training of the recipe's length, with a snapshot at each value.
# Fitting the learning rate schedule to each length would be a different experiment, with a full decay in each training.
EPOCHS = Knob(
    name="epochs",
    unit="epochs",
    long_name="training epochs",
    hotter="smaller",
    kind=int,
    low=1,
    low_open=False,
    changes=lambda recipe, value: {"stop": int(value)},
)

# The number of steps is fixed: epochs are counted at the recipe's own batch size.
BATCH_SIZE = Knob(
    name="batch_size",
    unit="images",
    long_name="batch size",
    hotter="smaller",
    kind=int,
    low=2,
    low_open=False,
    changes=lambda recipe, value: {"batch_size": int(value), "epoch_batch": recipe.batch_size},
)

LEARNING_RATE = Knob(
    name="learning_rate",
    unit="1",
    long_name="learning rate",
    hotter="larger",
    kind=float,
    low=0.0,
    low_open=True,
    changes=lambda recipe, value: {"learning_rate": float(value)},
)

WEIGHT_DECAY = Knob(
    name="weight_decay",
    unit="1",
    long_name="weight decay",
    hotter="larger",
    kind=float,
    low=0.0,
    low_open=False,
    changes=lambda recipe, value: {"weight_decay": float(value)},
)

SAM_RHO = Knob(
    name="sam_rho",
    unit="1",
    long_name="SAM rho",
    hotter="larger",
    kind=float,
    low=0.0,
    low_open=False,
    changes=lambda recipe, value: {"sam_rho": float(value)},
)

# Momentum sums gradients up: the effective learning rate is learning_rate / (1 - momentum).
MOMENTUM = Knob(
    name="momentum",
    unit="1",
    long_name="momentum",
    hotter="larger",
    kind=float,
    low=0.0,
    low_open=False,
    changes=lambda recipe, value: {"momentum": float(value)},
)

# Adam's first beta averages gradients, at the same effective learning rate: a longer average has less noise. This
# direction is a convention, from the update rule; it has not been measured.
BETA1 = Knob(
    name="beta1",
    unit="1",
    long_name="beta 1",
    hotter="smaller",
    kind=float,
    low=0.0,
    low_open=False,
    changes=lambda recipe, value: {"beta1": float(value)},
)

# A shorter average of squared gradients follows the noise of the latest batches. A convention, like that of beta 1.
BETA2 = Knob(
    name="beta2",
    unit="1",
    long_name="beta 2",
    hotter="smaller",
    kind=float,
    low=0.0,
    low_open=False,
    changes=lambda recipe, value: {"beta2": float(value)},
)

KNOBS = {
    "epochs": "regimes.knobs:EPOCHS",
    "batch_size": "regimes.knobs:BATCH_SIZE",
    "learning_rate": "regimes.knobs:LEARNING_RATE",
    "weight_decay": "regimes.knobs:WEIGHT_DECAY",
    "sam_rho": "regimes.knobs:SAM_RHO",
    "momentum": "regimes.knobs:MOMENTUM",
    "beta1": "regimes.knobs:BETA1",
    "beta2": "regimes.knobs:BETA2",
}
