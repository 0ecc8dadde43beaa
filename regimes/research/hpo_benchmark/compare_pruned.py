"""Compare ways to search for pruned networks on a table of them: each density by itself, and the front of all."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regimes.experiment.parent_watchdog import exit_with_parent
from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.figures import STYLES
from regimes.research.hpo_benchmark.pruned_table import open_pruned
from regimes.research.hpo_benchmark.recordings import Recording
from regimes.research.hpo_benchmark.replay_pruned import Curve, PrunedMethod, PrunedTable, curve, replay, time_to
from regimes.research.hpo_benchmark.scores import Interval, Numbers, mean_difference, not_worse, saving
from regimes.research.page import Page, Say

SINGLE_TRIALS, FRONT_TRIALS = 32, 96  # trials of a search at one density, and of one for the front
BATCH = 8  # trials of a search at one density that are asked for together; times the number of densities for the front
OURS = ("shared, TPE", "shared, map")  # the package's default first
GOAL_FACTOR, GOAL_SHARE = 3.0, 0.2  # less time than independent trials, and of the map than without it
INDEPENDENT = "each trial trained by itself"
SHARED = "one dense training for all densities and epochs, fleets"


def methods_of(densities: int) -> list[PrunedMethod]:
    """Return the compared methods; the baseline first: independent trials drawn by TPE, for a front by NSGA-II."""
    front = densities > 1
    batch = BATCH * densities
    stock = [PrunedMethod("TPE", f"TPE, {INDEPENDENT}", "tpe")]
    if front:
        stock.insert(0, PrunedMethod("NSGA-II", f"NSGA-II, {INDEPENDENT}", "nsga2"))
    else:
        stock.append(PrunedMethod("GP", f"Gaussian process of Optuna, {INDEPENDENT}", "gp"))
    shared = [
        PrunedMethod("shared, random", f"random; {SHARED}", "random", True, batch),
        PrunedMethod("shared, TPE", f"TPE; {SHARED}: the package without the map", "tpe", True, batch),
    ]
    if front:
        shared.append(PrunedMethod("shared, NSGA-II", f"NSGA-II; {SHARED}", "nsga2", True, batch))
    shared.append(PrunedMethod("shared, map", f"sampler of the map; {SHARED}", "map", True, batch))
    told = f"the same, with a second copy of every cell, whose landscape says hotter or colder; {SHARED}"
    shared.append(PrunedMethod("shared, map and landscape", told, "map", True, batch, landscape=True))
    return [*stock, PrunedMethod("random", f"random, {INDEPENDENT}", "random"), *shared]


@dataclass(frozen=True)
class Problem:
    """Searches of all methods for one density, or for the front.

    Attributes:
        title: its title.
        curves: {method: curve of each search}.
        seconds: {method: seconds of each search}.
        target: expected test error, or area, that counts as reached.
        margin: largest difference that counts as no worse.
        spread: standard deviation of the recorded cells' expected test errors.
    """

    title: str
    curves: Mapping[str, list[Curve]]
    seconds: Mapping[str, list[float]]
    target: float
    margin: float
    spread: float

    @property
    def base(self) -> str:
        """The baseline."""
        return next(iter(self.curves))

    def finals(self, method: str) -> list[float]:
        """Return the final value of each search."""
        return [each[-1][1] if each else 1.0 for each in self.curves[method]]

    def times(self, method: str) -> list[float]:
        """Return the seconds to the target of each search."""
        return [time_to(each, self.target) for each in self.curves[method]]


def compare_pruned(recording: Recording, path: Path, count: int, say: Say) -> Page:
    """Replay the methods on a table of pruned networks; return the page.

    Args:
        recording: the recording.
        path: the table.
        count: searches of each method, paired by seed.
        say: reports progress.
    """
    data, facts = open_pruned(path)
    every = tuple(range(data.sizes["density"]))
    problems = []
    for densities in (*((each,) for each in every), every):
        problems.append(problem(path, densities, count))
        say(f"{problems[-1].title}: {count} searches of each method")
    recorded = len(PrunedTable(data, every).recorded)
    paragraphs = [
        f"Searches replayed on `{path.name}`: {recorded} settings, {data.sizes['snapshot']} snapshots, "
        f"{len(every)} densities; {count} paired searches of each method. "
        f"Values seen by a search are validation errors of one copy of each cell; reported are expected test errors of "
        "its best network, estimated from the other copies and dense seeds. Seconds: one core, measured trainings of "
        f"one network alone or in fleets ({facts['engine']['engine']} x {facts['engine']['lanes']}), pruning, "
        "validation, and the sampler's own time, measured while replaying.",
        "Front: the area under the expected test error of the best network at each density or below, over the "
        "logarithm of the density, as a mean error. Target: the mean final value of the first method plus one standard "
        "deviation of one network's test error (of the front: divided by the root of the number of densities).",
    ]
    paragraphs += [verdict(each) for each in problems]
    tables = [_table(each) for each in problems]
    return Page(
        "compare-pruned",
        f"Searches for pruned networks compared on {recording.title}",
        paragraphs,
        tables,
        {"compare-pruned": _figure(problems)},
        kind="bench",
    )


def verdict(each: Problem) -> str:
    """Return in words how much less time the package's searches take, against the goals."""
    base, (default, with_map) = each.base, OURS
    saved = {name: saving(each.times(name), each.times(base)) for name in OURS}
    apart = mean_difference(each.finals(default), each.finals(base))
    worse = mean_difference(each.finals(with_map), each.finals(default))
    map_saves = saving(each.times(with_map), each.times(default))
    best = max(saved[name].value for name in OURS)
    reached = {True: "reached", False: "not reached"}
    return (
        f"**{each.title}.** Time to the target, of {base} divided by that of *{default}*, the package's default: "
        f"{_factor(saved[default])}; of *{with_map}*: {_factor(saved[with_map])}; {GOAL_FACTOR:g} was the goal: "
        f"{reached[best >= 1 - 1 / GOAL_FACTOR]}. *{default}* ends {apart.points()} points from {base}, *{with_map}* "
        f"{worse.points()} points from *{default}*. The map saves {map_saves.percent()} of the time to the target; "
        f"{100 * GOAL_SHARE:.0f} % was the goal: {reached[map_saves.value >= GOAL_SHARE]}. Test errors of the recorded "
        f"cells have a standard deviation of {100 * each.spread:.1f} points, one network's noise is "
        f"{100 * each.margin:.1f} points{' (averaged over the densities)' if each.title.startswith('Front') else ''}."
    )


def problem(path: Path, densities: Sequence[int], count: int) -> Problem:
    """Replay all methods for some densities in parallel."""
    data, _ = open_pruned(path)
    table, methods = PrunedTable(data, densities), methods_of(len(densities))
    trials = FRONT_TRIALS if len(densities) > 1 else SINGLE_TRIALS
    spawn = multiprocessing.get_context("spawn")
    curves: dict[str, list[Curve]] = {}
    seconds: dict[str, list[float]] = {}
    start = (path, tuple(densities), os.getpid())
    with ProcessPoolExecutor(mp_context=spawn, initializer=_ready, initargs=start) as pool:
        for method in methods:
            found = list(pool.map(_replayed, [(method, trials, seed) for seed in range(count)]))
            curves[method.name], seconds[method.name] = [each for each, _ in found], [each for _, each in found]
    noise = float(np.mean(table.noise[list(densities)])) / len(densities) ** 0.5
    base = curves[methods[0].name]
    target = float(np.mean([each[-1][1] if each else 1.0 for each in base])) + noise
    listed = [f"{float(data['density'].values[each]):g}" for each in densities]
    title = f"Front over densities {', '.join(listed)}" if len(densities) > 1 else f"Density {listed[0]}"
    expected = table.expected[..., list(densities)]
    spread = float(np.mean(np.nanstd(expected.reshape(-1, len(densities)), axis=0)))
    return Problem(title, curves, seconds, target, noise, spread)


_TABLE: list[PrunedTable] = []  # of this process


def _ready(path: Path, densities: Sequence[int], parent: int) -> None:
    exit_with_parent(parent)
    torch.set_num_threads(1)
    _TABLE.append(PrunedTable(open_pruned(path)[0], densities))


def _replayed(asked: tuple[PrunedMethod, int, int]) -> tuple[Curve, float]:
    method, trials, seed = asked
    table = _TABLE[0]
    marks, seconds = replay(table, method, trials, seed)
    return curve(marks, table.tested(seed), table), seconds


def _table(each: Problem) -> TextTable:
    """Seconds, savings and final errors of all methods."""
    head = ["search", "seconds", "to the target", "missed", "times less than the first", "test error, %", "difference"]
    rows, facts = [[*head, "no worse"]], {}
    base = each.base
    for name in each.curves:
        times, finals = each.times(name), each.finals(name)
        apart, saved = mean_difference(finals, each.finals(base)), saving(times, each.times(base))
        missed = sum(not np.isfinite(time) for time in times)
        row = [name, f"{np.median(each.seconds[name]):.0f}", _plain(float(np.median(times)))]
        row += [f"{missed} of {len(times)}", "-" if name == base else _factor(saved)]
        row += [f"{100 * np.mean(finals):.2f}", "-" if name == base else apart.points()]
        rows.append([*row, "-" if name == base else ("yes" if not_worse(apart, each.margin) else "no")])
        facts[name] = {"seconds": each.seconds[name], "to_target": times, "final": finals}
    if "shared, TPE" in each.curves and "shared, map" in each.curves:
        saved = saving(each.times("shared, map"), each.times("shared, TPE"))
        note = f"the map, compared with the same engine without it: {saved.percent()} less time to the target"
    else:
        note = ""
    notes = [
        f"target {100 * each.target:.2f} %; no worse: the upper end of the difference is within "
        f"{100 * each.margin:.2f} points; medians; 95 % intervals by bootstrap over searches",
        *([note] if note else []),
    ]
    return TextTable(each.title, rows, notes, facts)


def _plain(seconds: float) -> str:
    return f"{seconds:.0f}" if np.isfinite(seconds) else "never"


def _factor(saved: Interval) -> str:
    """A share of time saved as a factor."""

    def factor(share: float) -> str:
        return f"{1 / (1 - share):.1f}" if share < 1 else "the other never"

    return f"{factor(saved.value)} ({factor(saved.low)} to {factor(saved.high)})"


def _figure(problems: Sequence[Problem]) -> Figure:
    """Draw the expected test error of the best so far over time, a panel for each problem."""
    columns = min(2, len(problems))
    rows = -(-len(problems) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    names = list(dict.fromkeys(name for each in problems for name in each.curves))
    styles = dict(zip(names, STYLES, strict=False))
    for axes, each in zip(panels, problems, strict=False):
        _panel(axes, each, styles)
    for axes in panels[len(problems) :]:
        axes.set_axis_off()
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines() if line.get_label() in styles}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _panel(axes: Axes, each: Problem, styles: Mapping[str, tuple[str, str]]) -> None:
    latest = max(max(seconds) for seconds in each.seconds.values())
    first = min(found[0][0] for curves in each.curves.values() for found in curves if found)
    grid = np.geomspace(first, latest, 200)
    for name, curves in each.curves.items():
        held = np.mean([_held(found, grid) for found in curves], axis=0)
        axes.plot(grid, 100 * held, styles[name][1], color=styles[name][0], label=name, linewidth=1.4)
    axes.axhline(100 * each.target, color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    lowest = min(float(np.mean(each.finals(name))) for name in each.curves)
    axes.set_ylim(100 * (lowest - each.margin), 100 * min(1.0, lowest + 8 * each.margin))
    axes.set_xlabel("seconds of the search, one core")
    axes.set_ylabel("expected test error, %")
    axes.set_title(each.title, fontsize=9)


def _held(found: Curve, seconds: Numbers) -> Numbers:
    held = np.ones(len(seconds))
    for time, error in found:
        held[seconds >= time] = error
    return held
