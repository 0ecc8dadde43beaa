"""The phase diagram: regimes over temperature and density, with borders and advice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from regimes.errors import UserError
from regimes.plots.border import INK as BORDER
from regimes.plots.border import ProbabilityField, draw_border, has_border, has_inner_border, probability_field
from regimes.plots.escape import figure_text
from regimes.plots.grid_matrix import axis_titles, best_rows, load_groups, setting_at, table
from regimes.regime_map.axes import position
from regimes.regime_map.classification import MEANING
from regimes.regime_map.classify import REGIMES, meaning_of, present
from regimes.regime_map.regime_map import RegimeMap

# Colour-blind safe, and distinct in greyscale by their lightness.
COLOURS = {"unknown": "#e4e4e4", "I": "#a23b14", "II-A": "#f6d377", "II-B": "#4a8fb5"}
INK = {"unknown": "#555555", "I": "#ffffff", "II-A": "#222222", "II-B": "#ffffff"}
MAX_LABELLED_PROBABILITY = 0.95  # larger probabilities are not written into the cell
MIN_FILLED_CONFIDENCE = 0.8  # arrows of advice are filled from this confidence on


def phase_diagram(data: xr.Dataset, chart: RegimeMap | None = None, mark: Mapping[str, float] | None = None) -> Figure:
    """Draw the regimes of a classified grid as coloured, labelled cells with the borders between them.

    Args:
        data: a grid with ``regime``. If it has test errors, a dot marks the temperature with the lowest test error at
            each density.
        chart: its map. If given, the border is smooth with an 80 % band, and cells have an arrow of advice.
        mark: {knob: value, "density": value} of a setting to mark; needs ``chart``.

    Raises:
        UserError, OutsideRange: the mark is not a setting of the grid, or is outside the measured range.
    """
    rows, columns = table(data["regime"], data).shape
    figure = Figure(figsize=(max(6.4, 0.86 * columns + 1.6), max(3.6, 0.5 * rows + 2.3)), layout="constrained")
    axes = figure.subplots()
    fine = None if chart is None else probability_field(chart)
    dots = draw_regimes(axes, data, fine)
    more = [] if chart is None else draw_advice(axes, chart)
    if mark and chart is not None:
        more.append(draw_mark(axes, chart, mark))
    density_title, temperature_title = axis_titles(data)
    axes.set(xlabel=figure_text(density_title), ylabel=figure_text(temperature_title))
    axes.set_title(figure_text(f"Regimes of pruning: {data.attrs.get('title', '')}"), fontsize=11)
    handles = [*legend_handles(present(data), dots, meaning_of(data)), *more]
    if fine is not None and has_border(fine):
        handles.append(Patch(facecolor=BORDER, alpha=0.3, label="border of I (line) and its 80 % band"))
    if fine is not None and has_inner_border(fine):
        handles.append(Line2D([], [], color=BORDER, linestyle="--", label="border between II-A and II-B"))
    figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, fontsize=8.5)
    return figure


def draw_regimes(axes: Axes, data: xr.Dataset, fine: ProbabilityField | None = None, size: float = 9) -> bool:
    """Draw the cells of a classified grid, their borders and the dots of the lowest test errors.

    With ``fine``, the probability of a cell's regime is written in its corner if it is below 95 %.

    Args:
        axes: the axes to draw into.
        data: a grid with ``regime``.
        fine: the field of probabilities for smooth borders; None for borders along the cells.
        size: font size of the labels.

    Returns:
        Whether any dots were drawn.
    """
    cells = table(data["regime"], data)
    sns.heatmap(
        cells.rename(index=figure_text),
        ax=axes,
        cmap=ListedColormap([COLOURS[name] for name in REGIMES.values()]),
        vmin=-1.5,
        vmax=2.5,
        cbar=False,
        linewidths=0.6,
        linecolor="#ffffff",
    )
    best = best_rows(data)
    sure = (
        table(data["regime_probability"].max("regime_name"), data).to_numpy() if "regime_probability" in data else None
    )
    for (row, column), number in np.ndenumerate(cells.to_numpy()):
        name = REGIMES[int(number)]
        label = "?" if name == "unknown" else name
        style: dict[str, Any] = {
            "color": INK[name],
            "zorder": 4,
            "path_effects": [withStroke(linewidth=2, foreground=COLOURS[name])],
        }
        axes.text(column + 0.5, row + 0.5, label, ha="center", va="center", fontsize=size, **style)
        if sure is not None and number >= 0 and sure[row, column] < MAX_LABELLED_PROBABILITY and fine is not None:
            share = f"{100 * sure[row, column]:.0f} %"
            axes.text(column + 0.95, row + 0.94, share, ha="right", va="bottom", fontsize=size - 1.5, **style)
        if best.get(column) == row:
            axes.plot(
                column + 0.86, row + 0.2, "o", ms=5.5, mfc="#111111", mec="#ffffff", mew=1.0, clip_on=False, zorder=4
            )
    if fine is None:
        draw_steps(axes, cells.to_numpy(), load_groups(data))
    else:
        draw_border(axes, fine)
    axes.tick_params(axis="both", length=0)
    axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    return bool(best)


def draw_advice(axes: Axes, chart: RegimeMap) -> list[Line2D]:
    """Draw an arrow in each cell whose advice is hotter (up) or colder (down), filled from a confidence of 80 % on.

    Returns:
        The legend handles; empty if there are no arrows.
    """
    regimes = table(chart.data["regime"], chart.data)
    drawn = False
    for (row, column), number in np.ndenumerate(regimes.to_numpy()):
        if number < 0:
            continue
        setting = setting_at(chart.data, row, column)
        advice = chart.advise(setting.pop("density", None), setting)
        if advice.direction not in ("hotter", "colder"):
            continue
        drawn = True
        colour = INK[REGIMES[int(number)]]
        filled = colour if advice.confidence >= MIN_FILLED_CONFIDENCE else "none"
        shape = "^" if advice.direction == "hotter" else "v"
        axes.plot(column + 0.15, row + 0.5, shape, ms=5.5, mfc=filled, mec=colour, mew=0.9, zorder=4)
    if not drawn:
        return []
    by = "test errors, LMC and CKA" if "test_error" in chart.data else "LMC and CKA"
    share = f"{100 * MIN_FILLED_CONFIDENCE:.0f} %"
    label = f"advice: hotter or colder, by {by}\n(filled: confidence at least {share}; no arrow: stay)"
    return [Line2D([], [], ls="", marker="^", ms=5.5, color="#333333", label=label)]


def draw_mark(axes: Axes, chart: RegimeMap, mark: Mapping[str, float]) -> Line2D:
    """Mark a setting, also between cells, and return its legend handle."""
    row, column = 0.5, 0.5
    position(chart.axes, mark)  # raises if it is not a setting of the grid
    loads = [axis.name for axis in chart.axes if axis.name not in chart.knobs]
    if len(chart.knobs) > 1 or len(loads) > 1:
        raise UserError("--mark needs a grid with one knob and no width")
    for axis in chart.axes:
        places = np.sort(axis.place(np.array(axis.values)))
        at = float(axis.place(mark.get(axis.name, axis.values[0])))
        index = float(np.interp(at, places, np.arange(len(places)) + 0.5))
        if axis.name in chart.knobs:
            row = len(places) - index
        else:
            column = index
    style: dict[str, Any] = {"marker": "*", "ms": 17, "mfc": "#ffffff", "mec": "#111111", "mew": 1.6, "ls": ""}
    axes.plot(column, row, zorder=6, **style)
    setting = ", ".join(f"{name} {value:g}" for name, value in mark.items())
    return Line2D([], [], label=figure_text(f"yours: {setting}"), **{**style, "ms": 11})


def draw_steps(axes: Axes, labels: np.ndarray, groups: int = 1) -> None:
    """Draw a heavy line between neighbouring cells with different labels, and a gap between groups of columns."""
    rows, columns = labels.shape
    for edge in range(columns // groups, columns, columns // groups):
        axes.axvline(edge, color="#ffffff", lw=7, zorder=3)
    style: dict[str, Any] = {"color": "#111111", "lw": 2.2, "solid_capstyle": "round"}
    for row, column in np.ndindex(rows, columns):
        if (column + 1) % (columns // groups) and labels[row, column] != labels[row, column + 1]:
            axes.plot([column + 1, column + 1], [row, row + 1], **style)
        if row + 1 < rows and labels[row, column] != labels[row + 1, column]:
            axes.plot([column, column + 1], [row + 1, row + 1], **style)


def legend_handles(counts: Mapping[str, int], dots: bool, meaning: Mapping[str, str] = MEANING) -> list[Patch | Line2D]:
    """Return legend handles of the regimes, and of the dots; ``counts`` holds the number of cells per regime."""
    handles: list[Patch | Line2D] = [
        Patch(color=COLOURS[name], label=figure_text(f"{name}  {text}") + ("" if counts[name] else "  (not seen)"))
        for name, text in meaning.items()
    ]
    if dots:
        label = "lowest test error at this density"
        handles.append(Line2D([], [], ls="", marker="o", ms=5.5, mfc="#111111", mec="#ffffff", label=label))
    return handles
