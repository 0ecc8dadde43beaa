"""Figure of a search for pruned networks: progress or front, and the values by hyperparameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from regimes.plots.draw_map import REPRODUCIBLE_STYLE, save

COLUMNS = 3
COLOURS = "viridis"  # of densities
Row = Mapping[str, Any]


def draw_pruned_search(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw `pruned_search` into a folder, and return the files."""
    with mpl.rc_context(REPRODUCIBLE_STYLE):
        return save(pruned_search(result), folder / "search", ("png", "svg"))


def pruned_search(result: Mapping[str, Any]) -> Figure:
    """Draw best-so-far against seconds, for a front also value against cost; then the values by hyperparameter."""
    done = [each for each in result["trials"] if each["values"]]
    densities, names = result["densities"], list(result["space"])
    colours = {each: mpl.colormaps[COLOURS](0.85 * n / max(1, len(densities) - 1)) for n, each in enumerate(densities)}
    front = len(densities) > 1
    count = 1 + front + len(names)
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    label = _label(result)
    _progress(panels[0], result, colours, label)
    if front:
        _front(panels[1], result, done, colours, label)
    for axes, name in zip(panels[1 + front :], names, strict=False):
        _by_hyperparameter(axes, name, result["space"][name], done, densities, colours, label)
    for axes in panels[count:]:
        axes.set_axis_off()
    if front:
        figure.legend(
            handles=[mpl.lines.Line2D([], [], marker="o", linestyle="", color=colours[each]) for each in densities],
            labels=[f"density {each:g}" for each in densities],
            loc="outside lower center",
            ncols=min(len(densities), 6),
            frameon=False,
            fontsize=8,
        )
    figure.suptitle(f"{result['name']}: {len(done)} trials", fontsize=10)
    return figure


def _label(result: Mapping[str, Any]) -> str:
    what = result["units"][result["value"]]
    unit = "%" if what["fraction"] else "" if what["unit"] in ("1", "loss") else what["unit"]
    return f"validation {what['title']}{', ' + unit if unit else ''}"


def _scaled(values: Sequence[float], result_label: str) -> np.ndarray[Any, Any]:
    return np.asarray(values, dtype=float) * (100 if result_label.endswith("%") else 1)


def _density(row: Row, densities: Sequence[float]) -> float:
    return float(row["params"].get("density", densities[0]))


def _progress(axes: Axes, result: Mapping[str, Any], colours: Mapping[float, Any], label: str) -> None:
    """The best value so far at each density against the seconds of work."""
    by_number = {each["trial"]: each for each in result["trials"]}
    densities = result["densities"]
    best: dict[float, list[tuple[float, float]]] = {each: [] for each in densities}
    for mark in result["spending"]["curve"]:
        if mark["values"]:
            density = _density(by_number[mark["trial"]], densities)
            lowest = min([mark["values"][0], *(value for _, value in best[density][-1:])])
            best[density].append((mark["seconds"], lowest))
    end = max((mark["seconds"] for mark in result["spending"]["curve"]), default=1.0)
    for density, steps in best.items():
        if steps:
            seconds, values = zip(*[*steps, (end, steps[-1][1])], strict=True)
            axes.step(seconds, _scaled(values, label), where="post", color=colours[density])
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of work, all workers")
    axes.set_ylabel(f"best {label}")
    axes.set_title("best so far", fontsize=9)


def _front(
    axes: Axes, result: Mapping[str, Any], done: Sequence[Row], colours: Mapping[float, Any], label: str
) -> None:
    """Every trial, value against cost, and the front."""
    for row in done:
        colour = colours[_density(row, result["densities"])]
        axes.plot(row["values"][1], _scaled(row["values"][:1], label), "o", color=colour, markersize=3, alpha=0.5)
    best = sorted(result["best"], key=lambda each: each["cost"])
    costs = [each["cost"] for each in best]
    axes.step(costs, _scaled([each["value"] for each in best], label), where="post", color="0.2", marker="o", ms=4)
    tested = [(each["cost"], each["test_error"]) for each in best if each["test_error"] is not None]
    if tested and result["value"] == "error":
        x, y = zip(*tested, strict=True)
        axes.plot(x, _scaled(y, label), "D", color="#D55E00", markersize=4, label="test, fresh seeds")
        axes.legend(fontsize=7, frameon=False)
    _axis(axes, costs if result["against"] == "density" else None, log=True)
    axes.set_xlabel(result["against"] if result["against"] == "density" else result["against_unit"])
    axes.set_ylabel(label)
    axes.set_title("front", fontsize=9)


def _by_hyperparameter(
    axes: Axes,
    name: str,
    dimension: Mapping[str, Any],
    done: Sequence[Row],
    densities: Sequence[float],
    colours: Mapping[float, Any],
    label: str,
) -> None:
    for row in done:
        colour = colours[_density(row, densities)]
        axes.plot(row["params"][name], _scaled(row["values"][:1], label), "o", color=colour, markersize=3, alpha=0.7)
    choices = dimension["choices"]
    _axis(axes, choices, dimension["log"] or (choices and min(choices) > 0 and max(choices) >= 4 * min(choices)))
    axes.set_xlabel(name.replace("_", " "))
    axes.set_ylabel(label)


def _axis(axes: Axes, ticks: Sequence[float] | None, log: bool) -> None:
    """Set the scale of the horizontal axis, with plain labels at given values, or at 1, 2, 5 times powers of ten."""
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if ticks:
        axes.set_xticks(list(ticks))
    if log or ticks:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
