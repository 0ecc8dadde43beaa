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

from regimes.figures.table import axis_titles, best_rows, table
from regimes.phases.classify import MEANING, REGIMES, present

# Told apart by the colour-blind and, by their lightness, in grey.
COLOURS = {"unknown": "#e4e4e4", "I": "#a23b14", "II-A": "#f6d377", "II-B": "#4a8fb5"}
INK = {"unknown": "#555555", "I": "#ffffff", "II-A": "#222222", "II-B": "#ffffff"}


def phase_diagram(data: xr.Dataset) -> Figure:
    """Draw regimes of a classified grid: a cell each, named and coloured, the border drawn between them.

    A dot marks the temperature with the lowest test error at each density, where the grid has test errors.
    """
    rows, columns = table(data["regime"], data).shape
    figure = Figure(figsize=(max(6.2, 0.78 * columns + 1.6), max(3.4, 0.46 * rows + 1.9)), layout="constrained")
    axes = figure.subplots()
    dots = draw_regimes(axes, data)
    density_title, temperature_title = axis_titles(data)
    axes.set(xlabel=density_title, ylabel=temperature_title)
    axes.set_title(f"Regimes of pruning: {data.attrs.get('title', '')}", fontsize=11)
    handles = legend_handles(present(data), dots)
    figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, fontsize=8.5)
    return figure


def draw_regimes(axes: Axes, data: xr.Dataset, size: float = 9) -> bool:
    """Draw the cells of a classified grid, named in letters of a size, their border and the dots; whether there are any
    dots."""
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
    for (row, column), number in np.ndenumerate(cells.to_numpy()):
        name = REGIMES[int(number)]
        label = "?" if name == "unknown" else name
        axes.text(column + 0.5, row + 0.5, label, ha="center", va="center", color=INK[name], fontsize=size)
        if best.get(column) == row:
            axes.plot(column + 0.86, row + 0.2, "o", ms=5.5, mfc="#111111", mec="#ffffff", mew=1.0, clip_on=False)
    draw_border(axes, cells.to_numpy(), data.sizes.get("width", 1))
    axes.tick_params(axis="both", length=0)
    axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    return bool(best)


def draw_border(axes: Axes, labels: np.ndarray, widths: int = 1) -> None:
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


def legend_handles(counts: Mapping[str, int], dots: bool) -> list[Patch | Line2D]:
    """A handle for each regime, and one for the dots; ``counts`` says how many cells each regime has."""
    handles: list[Patch | Line2D] = [
        Patch(color=COLOURS[name], label=f"{name}  {text}" + ("" if counts[name] else "  (not seen)"))
        for name, text in MEANING.items()
    ]
    if dots:
        label = "lowest test error at this density"
        handles.append(Line2D([], [], ls="", marker="o", ms=5.5, mfc="#111111", mec="#ffffff", label=label))
    return handles
