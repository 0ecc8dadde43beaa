"""Figure of a hyperparameter search: the best full network so far against the training time spent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from regimes.plots.draw_map import REPRODUCIBLE_STYLE, save

CLASSES = {  # units of a classification by cross-entropy
    "error": {"title": "error", "unit": "1", "fraction": True},
    "loss": {"title": "loss", "unit": "nat", "fraction": False},
}


def draw_search(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw `best_so_far` into a folder, and return the files."""
    with mpl.rc_context(REPRODUCIBLE_STYLE):
        return save(best_so_far(result), folder / "search", ("png", "svg"))


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


def best_so_far(result: Mapping[str, Any]) -> Figure:
    """Draw the best value so far as steps; the time before the first trial (map, proxies) is shaded."""
    facts = result["savings"]
    curve = facts["curve"]
    before = facts["map_seconds"] + facts["proxy_seconds"]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    seconds, values = [each["seconds"] for each in curve], [each["value"] for each in curve]
    axes.step(seconds, values, where="post", color="#0072B2")
    axes.plot(seconds[:-1], values[:-1], "o", color="#0072B2", markersize=4)
    if before:
        what = "map and proxies" if facts["map_seconds"] else "finding proxies"
        axes.axvspan(0, before, color="0.9", label=f"{what}: {before:.0f} s")
        figure.legend(loc="outside lower right", fontsize=8, frameon=False)
    axes.set_xlim(left=0)
    if len(set(values)) > 1 and min(values) > 0 and max(values) > 3 * min(values):
        log_axis_with_plain_labels(axes.yaxis)
    axes.set_xlabel("seconds of training, all workers")
    axes.set_ylabel(objective_label(result["value"], result.get("units", CLASSES)))
    title = f"{result['name']}: best so far"
    if facts["baseline_seconds"]:
        share = facts["seconds"] / facts["baseline_seconds"]
        title += f", {facts['n']} trials in {share:.0%} of the time of as many full trainings"
    axes.set_title(title, fontsize=10)
    return figure
