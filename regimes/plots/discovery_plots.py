"""Pictures of discoveries: the structure over time, and what size buys at several pressures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from regimes.plots.draw_map import STEADY, save

Record = Mapping[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # told apart by the colour-blind
MARKS = ("o", "s", "^", "D", "v")
NAMED = 36  # layers whose names are readable beside each other
AXES = (
    ("macs", "full_macs", "MACs, share of the whole network's"),
    ("params", "full_params", "parameters, share of the whole network's"),
    ("inference_seconds", None, "measured time of 1000 inputs, ms"),
)


def draw_discovery(record: Record, folder: Path) -> list[Path]:
    """Draw one discovery's structure over time into its folder."""
    with mpl.rc_context(STEADY):
        return save(structure_over_time(record), folder / "structure", ("png", "svg"))


def draw_front(series: Mapping[str, Sequence[Record]], folder: Path) -> list[Path]:
    """Draw test error against three sizes into a folder; see `front`."""
    with mpl.rc_context(STEADY):
        return save(front(series), folder / "front", ("png", "svg"))


def structure_over_time(record: Record) -> Figure:
    """Units left in each layer (down, from input to output) along the epochs; white: the layer has left."""
    history, names = record["history"], record["layers"]
    whole = np.array([record["widths"][name][1] for name in names], dtype=float)
    left = np.array([[row["widths"][name] for row in history] for name in names], dtype=float) / whole[:, None]
    rows = len(names)
    figure = Figure(figsize=(8, max(2.6, min(10, 1.4 + 0.24 * rows))), layout="constrained")
    axes = figure.subplots()
    shown = np.ma.masked_where(left == 0, left)
    ends = (0.5, len(history) + 0.5, rows - 0.5, -0.5)
    image = axes.imshow(shown, aspect="auto", extent=ends, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    every = -(-rows // NAMED)
    at = list(range(0, rows, every))
    axes.set_yticks(at, [names[each] for each in at], fontsize=8)
    right = axes.secondary_yaxis("right")
    right.set_yticks(at, [f"{record['widths'][names[each]][0]}/{whole[each]:.0f}" for each in at], fontsize=8)
    right.tick_params(length=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    kept = f"{record['macs'] / record['full_macs']:.0%} of the MACs, {record['params'] / record['full_params']:.0%}"
    axes.set_title(f"Units left in each layer, nu = {record['nu']:g}: {kept} of the parameters at the end", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of units left (white: none)", pad=0.08)
    return figure


def front(series: Mapping[str, Sequence[Record]]) -> Figure:
    """Test error against MACs, parameters and measured time, one line a series through the means of its pressures.

    Args:
        series: {label: records}, of which those with one ``nu`` (or one ``label``) are seeds of one setting.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (key, full, label) in zip(panels, AXES, strict=True):
        for index, (name, records) in enumerate(series.items()):
            _line(axes, records, key, full, name, COLOURS[index % 5], MARKS[index % 5])
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.margins(x=0.12, y=0.12)
    panels[0].set_ylabel("test error, %")
    panels[0].set_title("means over seeds (dots), numbers: nu", fontsize=9)
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
