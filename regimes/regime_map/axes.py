"""Axes of a grid: map knob and load values to coordinates from 0 to 1, with hotter (denser) larger.

Measured values are equally spaced in these coordinates, so that nothing depends on how a sweep spaced them or on the
unit they are given in; values between two measured ones are interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from regimes.errors import OutsideRange, UserError
from regimes.record.grid import hotter_is_larger, knobs_of, loads_of
from regimes.registry import nearest

Numbers = NDArray[np.float64]
LOG_SCALE_RATIO = 4.0  # positive values that span a larger ratio get a logarithmic scale
RELATIVE_TOLERANCE = 1e-6  # values this close are equal up to rounding


@dataclass(frozen=True)
class Axis:
    """One knob or load of a grid.

    Attributes:
        name: the dimension.
        values: the measured values, ascending.
        scale: how values between two measured ones are interpolated: "log" for positive values that span more than a
            factor of four, "symlog" (logarithmic beyond the smallest positive value) if 0 is among them, "linear"
            otherwise.
        integer: whether values are integers.
        sign: +1 if larger values are hotter (always for loads), -1 if smaller ones are.
    """

    name: str
    values: tuple[float, ...]
    scale: Literal["linear", "log", "symlog"]
    integer: bool
    sign: int

    def as_number(self, value: float) -> int | float:
        """Return a value as an int if the axis holds integers (64 epochs, not 64.0), else as a float."""
        return int(value) if self.integer and float(value).is_integer() else float(value)

    def place(self, value: float | Numbers) -> Numbers:
        """Return the coordinate of a value: 0 for the coldest (lowest density) measured, 1 for the hottest (highest).

        Raises:
            OutsideRange: the value is outside the measured range.
        """
        low, high = self.values[0], self.values[-1]
        slack = RELATIVE_TOLERANCE * max(abs(low), abs(high))
        given = np.asarray(value, dtype=float)
        if not (np.all(given >= low - slack) and np.all(given <= high + slack)):
            raise OutsideRange(
                f"{self.name} {given.reshape(-1)[0]:g} is outside the measured range, {low:g} to {high:g}; "
                "the map does not extrapolate: extend the sweep, or ask within the range"
            )
        place = np.interp(self._bend(given), self._bend(np.array(self.values)), self._marks)
        return place if self.sign > 0 else 1 - place

    def nearest(self, value: float) -> float:
        """Return the measured value that equals a value up to rounding, or else the value itself."""
        close = [each for each in self.values if abs(each - value) <= RELATIVE_TOLERANCE * max(abs(each), abs(value))]
        return close[0] if close else value

    def value(self, place: Numbers) -> Numbers:
        """Return the values at coordinates; the inverse of `place`."""
        bent = np.interp(place if self.sign > 0 else 1 - place, self._marks, self._bend(np.array(self.values)))
        if self.scale == "log":
            return np.asarray(np.exp(bent))
        if self.scale == "symlog":
            return np.asarray(np.expm1(bent) * self._least)
        return np.asarray(bent)

    @property
    def _marks(self) -> Numbers:
        count = len(self.values)
        return np.arange(count) / max(count - 1, 1)

    @property
    def _least(self) -> float:
        return next(each for each in self.values if each > 0)

    def _bend(self, value: Numbers) -> Numbers:
        if self.scale == "log":
            return np.log(value)
        if self.scale == "symlog":
            return np.log1p(value / self._least)
        return value


def axes_of(data: xr.Dataset) -> tuple[Axis, ...]:
    """Return the axes of a checked grid: knobs in the grid's order, then loads."""
    return tuple(_axis(data, name) for name in (*knobs_of(data), *loads_of(data)))


def _axis(data: xr.Dataset, name: str) -> Axis:
    values = np.sort(data[name].values.astype(float))
    sign = -1 if name in knobs_of(data) and not hotter_is_larger(data, name) else 1
    positive = values[values > 0]
    wide = len(positive) > 1 and positive[-1] > LOG_SCALE_RATIO * positive[0]
    scale: Literal["linear", "log", "symlog"] = "linear"
    if wide and values[0] >= 0:
        scale = "log" if values[0] > 0 else "symlog"
    whole = np.issubdtype(data[name].dtype, np.integer)
    return Axis(name, tuple(values.tolist()), scale, bool(whole), sign)


def position(axes: tuple[Axis, ...], at: Mapping[str, float]) -> Numbers:
    """Return the coordinates (k,) of a setting on all axes; axes with one measured value may be omitted.

    Raises:
        UserError: an axis is missing or unknown.
        OutsideRange: a value is outside the measured range.
    """
    names = [each.name for each in axes]
    for name in at:
        if name not in names:
            raise UserError(f"unknown axis '{name}'{nearest(name, names)}; this grid has: {', '.join(names)}")
    missing = [each.name for each in axes if each.name not in at and len(each.values) > 1]
    if missing:
        hint = f"pass --at {missing[0]}=VALUE; measured: {_measured_values(axes)}"
        raise UserError(f"missing value for {', '.join(missing)}; {hint}")
    return np.array([float(each.place(at.get(each.name, each.values[0]))) for each in axes])


def _measured_values(axes: tuple[Axis, ...]) -> str:
    return "; ".join(f"{each.name} {', '.join(f'{value:g}' for value in each.values)}" for each in axes)
