"""Where a setting stands on a grid: every axis as a coordinate from 0 to 1, temperatures with hotter upwards."""

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
WIDE = 4.0  # positive values that span more than this ratio are told apart by their logarithms
SLACK = 1e-6  # of the measured range: a value that is an end of it, up to rounding


@dataclass(frozen=True)
class Axis:
    """One knob or load of a grid.

    Attributes:
        name: of the dimension.
        values: measured ones, ascending.
        scale: "log" for positive values that span more than a factor of four, "symlog" (logarithmic beyond the smallest
            positive value) where 0 is among those, "linear" otherwise.
        whole: whether values are whole numbers.
        sign: +1 where larger is hotter (or a larger load), -1 where smaller is.
    """

    name: str
    values: tuple[float, ...]
    scale: Literal["linear", "log", "symlog"]
    whole: bool
    sign: int

    def said(self, value: float) -> int | float:
        """A value as its knob writes it: 64 epochs, not 64.0."""
        return int(value) if self.whole and float(value).is_integer() else float(value)

    def place(self, value: float | Numbers) -> Numbers:
        """The coordinate of a value: 0 the coldest (sparsest) measured, 1 the hottest (densest).

        Raises:
            OutsideRange: a value beyond the measured ones.
        """
        low, high = self.values[0], self.values[-1]
        slack = SLACK * max(abs(low), abs(high))
        asked = np.asarray(value, dtype=float)
        if not (np.all(asked >= low - slack) and np.all(asked <= high + slack)):
            raise OutsideRange(
                f"{self.name} {asked.reshape(-1)[0]:g} lies outside what was measured, {low:g} to {high:g}; "
                "the map does not guess beyond it: sweep further, or ask within"
            )
        bent, ends = self._bend(asked), self._bend(np.array([low, high]))
        place = (bent - ends[0]) / (ends[1] - ends[0]) if high > low else np.zeros_like(bent)
        return np.clip(place if self.sign > 0 else 1 - place, 0.0, 1.0)

    def nearest(self, value: float) -> float:
        """The measured value that a value is up to rounding, or else the value itself."""
        close = [each for each in self.values if abs(each - value) <= SLACK * max(abs(each), abs(value))]
        return close[0] if close else value

    def value(self, place: Numbers) -> Numbers:
        """The values at coordinates: the inverse of ``place``."""
        ends = self._bend(np.array([self.values[0], self.values[-1]]))
        bent = ends[0] + (place if self.sign > 0 else 1 - place) * (ends[1] - ends[0])
        if self.scale == "log":
            return np.asarray(np.exp(bent))
        if self.scale == "symlog":
            return np.asarray(np.expm1(bent) * self._least)
        return np.asarray(bent)

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
    """The axes of a checked grid: knobs in its order, then loads."""
    return tuple(_axis(data, name) for name in (*knobs_of(data), *loads_of(data)))


def _axis(data: xr.Dataset, name: str) -> Axis:
    values = np.sort(data[name].values.astype(float))
    sign = -1 if name in knobs_of(data) and not hotter_is_larger(data, name) else 1
    positive = values[values > 0]
    wide = len(positive) > 1 and positive[-1] > WIDE * positive[0]
    scale: Literal["linear", "log", "symlog"] = "linear"
    if wide and values[0] >= 0:
        scale = "log" if values[0] > 0 else "symlog"
    whole = np.issubdtype(data[name].dtype, np.integer)
    return Axis(name, tuple(values.tolist()), scale, bool(whole), sign)


def position(axes: tuple[Axis, ...], at: Mapping[str, float]) -> Numbers:
    """The coordinates (k,) of a setting on all axes; an axis with one measured value may be left out.

    Raises:
        UserError: an axis is missing, or a name is none.
        OutsideRange: a value beyond the measured ones.
    """
    names = [each.name for each in axes]
    for name in at:
        if name not in names:
            raise UserError(f"'{name}' is no axis of this grid{nearest(name, names)}; allowed: {', '.join(names)}")
    missing = [each.name for each in axes if each.name not in at and len(each.values) > 1]
    if missing:
        raise UserError(f"where on {', '.join(missing)}? Say it with --at {missing[0]}=VALUE; measured: {_told(axes)}")
    return np.array([float(each.place(at.get(each.name, each.values[0]))) for each in axes])


def _told(axes: tuple[Axis, ...]) -> str:
    return "; ".join(f"{each.name} {', '.join(f'{value:g}' for value in each.values)}" for each in axes)
