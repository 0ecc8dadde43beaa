"""The border as the map knows it: a smooth line with its band, in the coordinates of the drawn cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from regimes.regime_map.regime_map import RegimeMap

Numbers = NDArray[np.float64]
FINE = 140  # points along a side
BAND = (0.1, 0.9)
INK = "#111111"


@dataclass(frozen=True)
class ProbabilityField:
    """Probabilities of the regimes on a fine grid over the drawn cells: x to the denser, y downwards to the colder."""

    x: Numbers
    y: Numbers
    regimes: Numbers  # (y, x, 3)


def field(chart: RegimeMap) -> ProbabilityField | None:
    """The field of a map with one knob and no width; None for others, whose rows are no neighbours."""
    if len(chart.axes) != 2 or min(len(axis.values) for axis in chart.axes) < 2:
        return None
    sides = []
    for axis in chart.axes:
        count = len(axis.values)
        at = np.linspace(0, count, FINE)
        marks = np.sort(axis.place(np.array(axis.values)))
        if axis is chart.axes[0]:
            marks = marks[::-1]  # the hottest row stands on top
        sides.append((at, np.interp(at, np.arange(count) + 0.5, marks)))
    (y, heat), (x, load) = sides
    places = np.stack(np.meshgrid(heat, load, indexing="ij"), -1).reshape(-1, 2)
    return ProbabilityField(x, y, chart.regimes_at(places).reshape(len(y), len(x), 3))


def has_border(found: ProbabilityField) -> bool:
    """Whether the border of I runs through the cells."""
    return bool(found.regimes[..., 0].min() < 0.5 < found.regimes[..., 0].max())


def draw_border(axes: Axes, found: ProbabilityField) -> bool:
    """Draw the border; whether there is any.

    A line where I and II are equally probable, the band in which that lies with a probability of 80 %, and, dashed, the
    line between II-A and II-B.
    """
    poorly, apart, alike = (found.regimes[..., number] for number in range(3))
    drawn = False
    if has_border(found):
        axes.contourf(found.x, found.y, poorly, levels=list(BAND), colors=[INK], alpha=0.16, zorder=2.5)
        axes.contour(found.x, found.y, poorly, levels=[0.5], colors=INK, linewidths=2.2, zorder=3)
        drawn = True
    between = np.where(poorly < 0.5, (apart - alike) / np.maximum(apart + alike, 1e-9), np.nan)
    if np.isfinite(between).any() and np.nanmin(between) < 0 < np.nanmax(between):
        axes.contour(found.x, found.y, between, levels=[0.0], colors=INK, linewidths=1.8, linestyles="--", zorder=3)
        drawn = True
    return drawn
