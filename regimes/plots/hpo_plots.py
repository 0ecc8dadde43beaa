"""Figure of a hyperparameter search: best value over time, fidelities against full trainings, values by setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from regimes.plots.draw_map import REPRODUCIBLE_STYLE, save

COLUMNS = 3  # of the small multiples
FEW_VALUES = 8  # of a hyperparameter, up to which they are drawn at equal distances
FULL_COLOUR = "#0072B2"
MARKERS = ("o", "s", "^", "D")
CLASSES = {  # units of a classification by cross-entropy
    "error": {"title": "error", "unit": "1", "fraction": True},
    "loss": {"title": "loss", "unit": "nat", "fraction": False},
}


def draw_search(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw a search into a folder, and return the files."""
    with mpl.rc_context(REPRODUCIBLE_STYLE):
        return save(search_figure(result), folder / "search", ("png", "svg"))


def objective_label(value: str, units: Mapping[str, Any] = CLASSES) -> str:
    """Return the axis label of the objective, "error" or a loss.

    Args:
        value: the objective.
        units: titles and units of error and loss, see `regimes.hpo.validation.units_of`.
    """
    what = units["error" if value == "error" else "loss"]
    unit = "share wrong" if what["fraction"] else what["unit"]
    return f"validation {what['title']} of the full network{'' if unit in ('1', 'loss') else f' ({unit})'}"


def log_axis_with_plain_labels(axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers as tick labels."""
    across = axis is axis.axes.xaxis
    (axis.axes.set_xscale if across else axis.axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_tick_params(which="both", labelsize=8)


def search_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the best value over time, cheap against full trainings, and the values of every trial by hyperparameter."""
    table, label = result["table"], objective_label(result["value"], result.get("units", CLASSES))
    names = list(dict.fromkeys(name for each in table["trials"] for name in each["params"]))
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(10.5, 3.5 + 2.7 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.3, 2.7 * rows])[:, 0]
    left, right = above.subplots(1, 2)
    _best_so_far(left, result)
    _cheap_against_full(right, table)
    grid = below.subplots(rows, COLUMNS, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        _by_hyperparameter(axes, table, name)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    _legend(below, table)
    below.supylabel(label.replace(" of the full network", ""), fontsize=9)
    title = f"{result['name']}: {result['savings']['n']} trials"
    figure.suptitle(title, fontsize=11)
    return figure


def _best_so_far(axes: Axes, result: Mapping[str, Any]) -> None:
    """Draw the best value so far as steps; the time before the first trial (map, timing) is shaded."""
    facts = result["savings"]
    before = facts["map_seconds"] + facts["proxy_seconds"]
    seconds, values = ([each[name] for each in facts["curve"]] for name in ("seconds", "value"))
    axes.step(seconds, values, where="post", color=FULL_COLOUR)
    axes.plot(seconds[:-1], values[:-1], "o", color=FULL_COLOUR, markersize=4)
    if before:
        what = "map, building and timing" if facts["map_seconds"] else "building and timing"
        axes.axvspan(0, before, color="0.9", label=f"{what}: {before:.0f} s")
        axes.legend(loc="upper right", fontsize=8, frameon=False)
    axes.set_xlim(left=0)
    _scale(axes.yaxis, values)
    axes.set_xlabel("seconds of training, all workers")
    axes.set_ylabel(objective_label(result["value"], result.get("units", CLASSES)), fontsize=8)
    axes.set_title("best full training so far", fontsize=10)


def _cheap_against_full(axes: Axes, table: Mapping[str, Any]) -> None:
    """Scatter the last value on each fidelity against the full training's, of the trials that have both."""
    proxies = {each["trial"]: each["values"] for each in table["trials"] if each["proxy"] is None}
    *cheap, full = table["fidelities"]
    seen: list[float] = []
    for number, name in enumerate(cheap):
        pairs = []
        for each in table["trials"]:
            values = {**proxies.get(each["proxy"], {}), **each["values"]}
            if values.get(name) is not None and values.get(full) is not None:
                pairs.append((values[name], values[full]))
        if pairs:
            axes.plot(*zip(*pairs, strict=True), MARKERS[number % len(MARKERS)], label=table["fidelities"][name])
            seen += [value for pair in pairs for value in pair]
    axes.set_title("trials trained on both", fontsize=10)
    if not seen:
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes, color="0.5")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    ends = [min(seen), max(seen)]
    axes.plot(ends, ends, color="0.8", linewidth=0.8, zorder=0)
    _scale(axes.xaxis, seen)
    _scale(axes.yaxis, seen)
    axes.set_xlabel("value on the cheaper training", fontsize=8)
    axes.set_ylabel("value of the full training", fontsize=8)
    axes.legend(fontsize=8, frameon=False)


def _by_hyperparameter(axes: Axes, table: Mapping[str, Any], name: str) -> None:
    """Scatter every trial's last value against one hyperparameter."""
    full = list(table["fidelities"])[-1]
    settings = sorted({each["params"][name] for each in table["trials"] if name in each["params"]})
    few = len(settings) <= FEW_VALUES and name not in table["log"]
    seen = []
    for each in table["trials"]:
        last = list(each["values"])[-1]
        value = each["values"][last]
        if name not in each["params"] or value is None:
            continue
        where = settings.index(each["params"][name]) if few else each["params"][name]
        axes.plot(where, value, **_style(last == full, each["ended"]))
        seen.append(value)
    if few:
        axes.set_xticks(range(len(settings)), [f"{each:g}" for each in settings])
    elif name in table["log"]:
        axes.set_xscale("log")
    _scale(axes.yaxis, seen)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(name, fontsize=9)


def _style(full: bool, ended: bool) -> dict[str, Any]:
    colour = FULL_COLOUR if full else "0.45"
    face = {"markerfacecolor": colour if ended else "none", "markeredgecolor": colour}
    return {"marker": "o", "linestyle": "", "markersize": 5 if full else 3.5, "zorder": 3 if full else 2, **face}


def _legend(figure: SubFigure, table: Mapping[str, Any]) -> None:
    *cheap, full = table["fidelities"]
    titles = [table["fidelities"][name] for name in cheap]
    last = [(list(each["values"])[-1] == full, each["ended"]) for each in table["trials"]]
    words = {
        (True, True): "trained in full",
        (True, False): "full training stopped early",
        (False, True): f"trained on {' or '.join(titles)}",
        (False, False): "the same, stopped early",
    }
    marks = [Line2D([], [], label=text, **_style(*kind)) for kind, text in words.items() if kind in last]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False)


def _scale(axis: Axis, values: Sequence[float]) -> None:
    """Make an axis logarithmic if the values are positive and of different magnitude."""
    if len(set(values)) > 1 and min(values) > 0 and max(values) > 3 * min(values):
        log_axis_with_plain_labels(axis)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
