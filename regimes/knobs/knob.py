"""What a knob is: a name, a unit, which way is hotter, and how a value changes a training recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Value = int | float
MOST = 1e38  # the largest float32; a longer whole number would not even convert


class RecipeLike(Protocol):
    """The part of a recipe that knobs read (the recipe itself lives below this folder)."""

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
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MOST:
            return False
        if self.kind is int and value != int(value):
            return False
        return value > self.low if self.low_open else value >= self.low
