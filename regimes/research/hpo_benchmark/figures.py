"""Figures of a replay: test error of the incumbent over time, and ranking quality of each fidelity by cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from regimes.plots.hpo_plots import log_axis_with_plain_labels
from regimes.research.hpo_benchmark.methods import BASE, OURS
from regimes.research.hpo_benchmark.ranking_quality import RankingQuality
from regimes.research.hpo_benchmark.run_method import MethodResult
from regimes.research.hpo_benchmark.scores import Numbers, incumbents

SHOWN = {  # method: colour, line
    BASE: ("#000000", "-"),
    "TPE + halving": ("#0072B2", "--"),
    "TPE + median": ("#56B4E9", ":"),
    "the paper's recipe": ("#CC79A7", ":"),
    "ours, no proxy": ("#009E73", "-."),
    "ours, with the map": ("#E69F00", "--"),
    OURS.name: ("#D55E00", "-"),
}
STYLES = [(colour, style) for style in ("-", "--", ":") for colour in tuple(each for each, _ in SHOWN.values())]
CURVE_POINTS = 200


def curves(
    found: Mapping[str, Sequence[MethodResult]],
    tested: Sequence[Numbers],
    target: float,
    shown: Mapping[str, tuple[str, str]] = SHOWN,
) -> Figure:
    """Draw the incumbent's expected test error over time, averaged over searches once all have an incumbent."""
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    axes = figure.subplots()
    latest = max(each.seconds for name in shown for each in found.get(name, ()))
    for name, (colour, style) in shown.items():
        if name not in found:
            continue
        seconds = np.geomspace(10, latest, CURVE_POINTS)
        held = np.array([_held(each, errors, seconds) for each, errors in zip(found[name], tested, strict=True)])
        held = held.mean(axis=0)
        mean = np.where(np.isfinite(held), held, np.nan)
        axes.plot(seconds, 100 * mean, style, color=colour, label=name, linewidth=1.6)
    axes.axhline(100 * target, color="#999999", linewidth=0.8)
    above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
    axes.annotate("target", (latest, 100 * target), color="#666666", fontsize=8, **above)
    log_axis_with_plain_labels(axes.yaxis)
    _logarithmic(axes)
    axes.set_xlabel("seconds of the search, one core, all costs included")
    axes.set_ylabel("expected test error of the incumbent (%)")
    axes.set_title("Best so far, mean of the replayed searches", fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def _held(found: MethodResult, tested: Numbers, seconds: Numbers) -> Numbers:
    """Expected test error of the incumbent at given times; infinite before the first."""
    held = np.full(len(seconds), math.inf)
    for time, setting in incumbents(found):
        held[seconds >= time] = tested[setting]
    return held


def ranking_figure(ranks: Sequence[RankingQuality]) -> Figure:
    """Draw Kendall's tau of every fidelity with its interval, most expensive on top; band: another seed."""
    full, *rest = ranks
    rest = sorted(rest, key=lambda one: one.cost)
    figure = Figure(figsize=(6.8, 1.2 + 0.24 * len(rest)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(full.tau.low, full.tau.high, color="#DDDDDD", zorder=0)
    again: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "color": "#555555", "rotation": 90}
    axes.text(full.tau.value, 0, "another seed of the full network", **again)
    for place, each in enumerate(rest):
        off = [[each.tau.value - each.tau.low], [each.tau.high - each.tau.value]]
        axes.errorbar(each.tau.value, place, xerr=off, fmt="o", color=_colour(each.name), markersize=5, capsize=2)
    axes.set_yticks(range(len(rest)), [f"{each.name}: {each.cost:.2f}" for each in rest], fontsize=8)
    for label, each in zip(axes.get_yticklabels(), rest, strict=True):
        label.set_color(_colour(each.name))
    axes.set_xlabel("Kendall's tau with the full network")
    axes.set_ylabel("fidelity: cost as a share of a full training")
    axes.set_title("Ranking of settings by cheaper fidelities", fontsize=10)
    return figure


def _logarithmic(axes: Axes) -> None:
    """Set a logarithmic x axis labelled at powers of ten only."""
    log_axis_with_plain_labels(axes.xaxis)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _colour(name: str) -> str:
    """Colour by kind: narrowed networks, other proxies, shorter training of the full network."""
    if name.startswith("narrowed"):
        return "#D55E00"
    return "#000000" if name.startswith("full") or "images" in name else "#0072B2"
