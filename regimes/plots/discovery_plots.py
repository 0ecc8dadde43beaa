"""Figures of discoveries: units per layer over time, and test error against network size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from regimes.plots.draw_map import REPRODUCIBLE_STYLE, save

Record = Mapping[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # colour-blind safe
MARKS = ("o", "s", "^", "D", "v")
MAX_LABELLED_LAYERS = 36  # maximum number of layer names on an axis
SIZE_AXES = (
    ("macs", "full_macs", "MACs, share of the full network"),
    ("params", "full_params", "parameters, share of the full network"),
    ("inference_seconds", None, "measured time of 1000 inputs, ms"),
)


def draw_discovery(record: Record, folder: Path) -> list[Path]:
    """Draw `structure_over_time` into a folder, and return the files."""
    with mpl.rc_context(REPRODUCIBLE_STYLE):
        return save(structure_over_time(record), folder / "structure", ("png", "svg"))


def draw_front(series: Mapping[str, Sequence[Record]], folder: Path) -> list[Path]:
    """Draw `front` into a folder, and return the files."""
    with mpl.rc_context(REPRODUCIBLE_STYLE):
        return save(front(series), folder / "front", ("png", "svg"))


def structure_over_time(record: Record) -> Figure:
    """Draw the share of units kept in each layer (rows, input on top) over the epochs; white: the layer is removed."""
    history, names = record["history"], record["layers"]
    whole = np.array([record["widths"][name][1] for name in names], dtype=float)
    left = np.array([[row["widths"][name] for row in history] for name in names], dtype=float) / whole[:, None]
    rows = len(names)
    figure = Figure(figsize=(8, max(2.6, min(10, 1.4 + 0.24 * rows))), layout="constrained")
    axes = figure.subplots()
    shown = np.ma.masked_where(left == 0, left)
    ends = (0.5, len(history) + 0.5, rows - 0.5, -0.5)
    image = axes.imshow(shown, aspect="auto", extent=ends, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    every = -(-rows // MAX_LABELLED_LAYERS)
    at = list(range(0, rows, every))
    axes.set_yticks(at, [names[each] for each in at], fontsize=8)
    right = axes.secondary_yaxis("right")
    right.set_yticks(at, [f"{record['widths'][names[each]][0]}/{whole[each]:.0f}" for each in at], fontsize=8)
    right.tick_params(length=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    kept = f"{record['macs'] / record['full_macs']:.0%} of the MACs, {record['params'] / record['full_params']:.0%}"
    axes.set_title(f"Units kept in each layer, nu = {record['nu']:g}: {kept} of the parameters at the end", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of units kept (white: none)", pad=0.08)
    return figure


def front(series: Mapping[str, Sequence[Record]]) -> Figure:
    """Draw test error against MACs, parameters and inference time, one line per series through the means over seeds.

    Args:
        series: {label: records}; records with the same ``nu`` are seeds of one setting.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (key, full, label) in zip(panels, SIZE_AXES, strict=True):
        for index, (name, records) in enumerate(series.items()):
            _line(axes, records, key, full, name, COLOURS[index % 5], MARKS[index % 5])
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.margins(x=0.12, y=0.12)
    panels[0].set_ylabel("test error, %")
    panels[0].set_title("means over seeds (dots: seeds, numbers: nu)", fontsize=9)
    if len(series) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    return figure


def _line(axes: Axes, records: Sequence[Record], key: str, full: str | None, name: str, colour: str, mark: str) -> None:
    groups: dict[Any, list[tuple[float, float]]] = {}
    for record in records:
        size = record[key] / record[full] if full else 1000 * record[key]
        groups.setdefault(record.get("nu"), []).append((size, 100 * record["test_error"]))
    means = {nu: np.mean(points, axis=0) for nu, points in groups.items()}
    for points in groups.values():
        across, up = np.transpose(points)
        axes.scatter(across, up, s=12, color=colour, alpha=0.4, linewidths=0)
    order = sorted(means, key=lambda nu: means[nu][0])
    axes.plot(*np.transpose([means[nu] for nu in order]), color=colour, marker=mark, label=name, markersize=6, lw=1.2)
    if key == "macs":
        for nu in order:
            if nu is not None:
                axes.annotate(f"{nu:g}", means[nu], xytext=(5, 5), textcoords="offset points", fontsize=8, color=colour)
