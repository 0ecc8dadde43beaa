"""Temperature-like knobs of training: epochs, batch size, learning rate, weight decay, SAM rho.

A knob is data: its name, unit, allowed values, which way is hotter, and how a value changes the training recipe. A new
knob is a `Knob` here and a line in `KNOBS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Value = int | float
MAX_VALUE = 1e38  # the largest float32; a longer integer would not even convert


class RecipeLike(Protocol):
    """The part of a recipe that knobs read (the recipe itself is defined in `config`)."""

    @property
    def batch_size(self) -> int: ...


@dataclass(frozen=True)
class Knob:
    """A temperature-like knob of training (Zhou et al. 2023, arXiv 2305.18383).

    Attributes:
        name: the name of the knob; also the dimension's name in a record.
        unit: the unit of its values.
        long_name: for axes and reports.
        hotter: whether training gets noisier with larger or with smaller values.
        kind: the type of the values.
        low: the smallest value allowed.
        low_open: whether ``low`` itself is excluded.
        changes: ``(recipe, value) -> {field: new value}``, how a value changes the dense recipe. The retraining recipe
            is never touched by a knob.
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
        """The values allowed, in words."""
        noun = "whole numbers" if self.kind is int else "numbers"
        return f"{noun} {'above' if self.low_open else 'from'} {self.low:g}{'' if self.low_open else ' up'}"

    def accepts(self, value: object) -> bool:
        """Whether a value from a sweep file is one of this knob's values."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MAX_VALUE:
            return False
        if self.kind is int and value != int(value):
            return False
        return value > self.low if self.low_open else value >= self.low


# Early stopping under one fixed schedule: one training of the recipe's length, with a snapshot at each value. Training
# with a schedule annealed to each length would be a different experiment, since its learning rate always decays.
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

# At a fixed number of steps: epochs are counted at the recipe's own batch size.
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

KNOBS = {
    "epochs": "regimes.knobs:EPOCHS",
    "batch_size": "regimes.knobs:BATCH_SIZE",
    "learning_rate": "regimes.knobs:LEARNING_RATE",
    "weight_decay": "regimes.knobs:WEIGHT_DECAY",
    "sam_rho": "regimes.knobs:SAM_RHO",
}
