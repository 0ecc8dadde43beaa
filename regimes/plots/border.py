"""The border of regime I with its 80 % band, as contours in the coordinates of the drawn cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from regimes.regime_map.regime_map import RegimeMap

Numbers = NDArray[np.float64]
GRID_POINTS = 140  # per side
BAND_PROBABILITIES = (0.1, 0.9)
NEIGHBOURS = ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]))  # along both axes
INK = "#111111"


@dataclass(frozen=True)
class ProbabilityField:
    """Probabilities of the regimes on a fine grid over the drawn cells.

    Attributes:
        x: horizontal positions in cells, towards higher density.
        y: vertical positions in cells, downwards to colder.
        regimes: (y, x, 3) probabilities.
    """

    x: Numbers
    y: Numbers
    regimes: Numbers


def probability_field(chart: RegimeMap) -> ProbabilityField | None:
    """Return the field of a map with one knob and no width; None for other maps, where rows are not neighbours."""
    if len(chart.axes) != 2 or min(len(axis.values) for axis in chart.axes) < 2:
        return None
    sides = []
    for axis in chart.axes:
        count = len(axis.values)
        at = np.linspace(0, count, GRID_POINTS)
        marks = np.sort(axis.place(np.array(axis.values)))
        if axis is chart.axes[0]:
            marks = marks[::-1]  # the hottest row is on top
        sides.append((at, np.interp(at, np.arange(count) + 0.5, marks)))
    (y, heat), (x, load) = sides
    places = np.stack(np.meshgrid(heat, load, indexing="ij"), -1).reshape(-1, 2)
    return ProbabilityField(x, y, chart.regimes_at(places).reshape(len(y), len(x), 3))


def has_border(probabilities: ProbabilityField) -> bool:
    """Return whether the border of I runs through the cells."""
    return _changes_sign(probabilities.regimes[..., 0] - 0.5)


def has_inner_border(probabilities: ProbabilityField) -> bool:
    """Return whether the border between II-A and II-B runs through the cells."""
    return _changes_sign(_inner(probabilities))


def draw_border(axes: Axes, probabilities: ProbabilityField) -> bool:
    """Draw the borders, and return whether there are any.

    A line where I and II are equally probable, with the band between probabilities 0.1 and 0.9; and a dashed line
    between II-A and II-B.
    """
    poorly, x, y = probabilities.regimes[..., 0], probabilities.x, probabilities.y
    outer, inner = has_border(probabilities), has_inner_border(probabilities)
    if outer:
        axes.contourf(x, y, poorly, levels=list(BAND_PROBABILITIES), colors=[INK], alpha=0.16, zorder=2.5)
        axes.contour(x, y, poorly, levels=[0.5], colors=INK, linewidths=2.2, zorder=3)
    if inner:
        axes.contour(x, y, _inner(probabilities), levels=[0.0], colors=INK, linewidths=1.8, linestyles="--", zorder=3)
    return outer or inner


def _inner(probabilities: ProbabilityField) -> Numbers:
    """P(II-A) - P(II-B), relative to their sum; NaN in I."""
    poorly, apart, alike = (probabilities.regimes[..., number] for number in range(3))
    return np.where(poorly < 0.5, (apart - alike) / np.maximum(apart + alike, 1e-9), np.nan)


def _changes_sign(values: Numbers) -> bool:
    """Whether neighbouring values (rows, columns) differ in sign."""
    return any(bool((values[before] * values[after] < 0).any()) for before, after in NEIGHBOURS)
