"""The phase diagram: regimes over temperature and density, and the border between them."""

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
from regimes.plots.border import ProbabilityField, draw_border, field, has_border
from regimes.plots.grid_matrix import axis_titles, best_rows, setting_at, table
from regimes.regime_map.axes import position
from regimes.regime_map.classify import REGIMES, meaning_of, present
from regimes.regime_map.landscape_rules import MEANING
from regimes.regime_map.regime_map import RegimeMap

# Told apart by the colour-blind and, by their lightness, in grey.
COLOURS = {"unknown": "#e4e4e4", "I": "#a23b14", "II-A": "#f6d377", "II-B": "#4a8fb5"}
INK = {"unknown": "#555555", "I": "#ffffff", "II-A": "#222222", "II-B": "#ffffff"}
SURE = 0.95  # from here a regime's probability is not written
CLEAR = 0.8  # from here an arrow of advice is filled


def phase_diagram(data: xr.Dataset, chart: RegimeMap | None = None, mark: Mapping[str, float] | None = None) -> Figure:
    """Draw regimes of a classified grid: a cell each, named and coloured, the border drawn between them.

    Args:
        data: a grid with ``regime``. A dot marks the temperature with the lowest test error at each density, where the
            grid has test errors.
        chart: its map; with it, the border is smooth and has its band, and each cell an arrow of advice.
        mark: {knob: value, "density": value} of a point of one's own, marked; needs the map.

    Raises:
        UserError, OutsideRange: a mark that is no setting of the grid, or lies beyond the measured ones.
    """
    rows, columns = table(data["regime"], data).shape
    figure = Figure(figsize=(max(6.4, 0.86 * columns + 1.6), max(3.6, 0.5 * rows + 2.3)), layout="constrained")
    axes = figure.subplots()
    fine = None if chart is None else field(chart)
    dots = draw_regimes(axes, data, fine)
    more = [] if chart is None else draw_advice(axes, chart)
    if mark and chart is not None:
        more.append(draw_mark(axes, chart, mark))
    density_title, temperature_title = axis_titles(data)
    axes.set(xlabel=density_title, ylabel=temperature_title)
    axes.set_title(f"Regimes of pruning: {data.attrs.get('title', '')}", fontsize=11)
    handles = [*legend_handles(present(data), dots, meaning_of(data)), *more]
    if fine is not None and has_border(fine):
        handles.append(Patch(color=BORDER, alpha=0.3, label="the border of I lies here with a probability of 80 %"))
    figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, fontsize=8.5)
    return figure


def draw_regimes(axes: Axes, data: xr.Dataset, fine: ProbabilityField | None = None, size: float = 9) -> bool:
    """Draw the cells of a classified grid, named in letters of a size, their border and the dots; whether there are any
    dots. In a corner stands how probable the regime is, where that is less than 95 %."""
    cells = table(data["regime"], data)
    sns.heatmap(
        cells,
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
        if sure is not None and number >= 0 and sure[row, column] < SURE and fine is not None:
            share = f"{100 * sure[row, column]:.0f} %"
            axes.text(column + 0.95, row + 0.94, share, ha="right", va="bottom", fontsize=size - 1.5, **style)
        if best.get(column) == row:
            axes.plot(
                column + 0.86, row + 0.2, "o", ms=5.5, mfc="#111111", mec="#ffffff", mew=1.0, clip_on=False, zorder=4
            )
    if fine is None:
        draw_steps(axes, cells.to_numpy(), data.sizes.get("width", 1))
    else:
        draw_border(axes, fine)
    axes.tick_params(axis="both", length=0)
    axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    return bool(best)


def draw_advice(axes: Axes, chart: RegimeMap) -> list[Line2D]:
    """An arrow in each cell towards hotter or colder, filled where that is at least 80 % sure; none where to stay."""
    regimes = table(chart.data["regime"], chart.data)
    drawn = False
    for (row, column), number in np.ndenumerate(regimes.to_numpy()):
        if number < 0:
            continue
        setting = setting_at(chart.data, row, column)
        advice = chart.advise(setting.pop("density"), setting)
        if advice.direction not in ("hotter", "colder"):
            continue
        drawn = True
        colour = INK[REGIMES[int(number)]]
        filled = colour if advice.confidence >= CLEAR else "none"
        shape = "^" if advice.direction == "hotter" else "v"
        axes.plot(column + 0.15, row + 0.5, shape, ms=5.5, mfc=filled, mec=colour, mew=0.9, zorder=4)
    if not drawn:
        return []
    by = "test errors, LMC and CKA" if "test_error" in chart.data else "LMC and CKA"
    label = f"turn hotter or colder, by {by}\n(filled: at least {100 * CLEAR:.0f} % sure; no arrow: stay)"
    return [Line2D([], [], ls="", marker="^", ms=5.5, color="#333333", label=label)]


def draw_mark(axes: Axes, chart: RegimeMap, mark: Mapping[str, float]) -> Line2D:
    """Mark a setting, between cells where it lies there."""
    row, column = 0.5, 0.5
    position(chart.axes, mark)  # says what is wrong with it
    loads = [axis.name for axis in chart.axes if axis.name not in chart.knobs]
    if len(chart.knobs) > 1 or len(loads) > 1:
        raise UserError("--mark is for grids with one knob, without width")
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
    said = ", ".join(f"{name} {value:g}" for name, value in mark.items())
    return Line2D([], [], label=f"yours: {said}", **{**style, "ms": 11})


def draw_steps(axes: Axes, labels: np.ndarray, widths: int = 1) -> None:
    """Draw a heavy line wherever two neighbouring cells have different labels; a gap between widths."""
    rows, columns = labels.shape
    for edge in range(columns // widths, columns, columns // widths):
        axes.axvline(edge, color="#ffffff", lw=7, zorder=3)
    style: dict[str, Any] = {"color": "#111111", "lw": 2.2, "solid_capstyle": "round"}
    for row, column in np.ndindex(rows, columns):
        if (column + 1) % (columns // widths) and labels[row, column] != labels[row, column + 1]:
            axes.plot([column + 1, column + 1], [row, row + 1], **style)
        if row + 1 < rows and labels[row, column] != labels[row + 1, column]:
            axes.plot([column, column + 1], [row + 1, row + 1], **style)


def legend_handles(counts: Mapping[str, int], dots: bool, meaning: Mapping[str, str] = MEANING) -> list[Patch | Line2D]:
    """A handle for each regime, and one for the dots; ``counts`` says how many cells each regime has."""
    handles: list[Patch | Line2D] = [
        Patch(color=COLOURS[name], label=f"{name}  {text}" + ("" if counts[name] else "  (not seen)"))
        for name, text in meaning.items()
    ]
    if dots:
        label = "lowest test error at this density"
        handles.append(Line2D([], [], ls="", marker="o", ms=5.5, mfc="#111111", mec="#ffffff", label=label))
    return handles
