"""Tables of a replay: cost and result of each method, and sensitivity to the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.methods import BASE, METHODS, SearchMethod
from regimes.research.hpo_benchmark.run_method import BenchmarkSetup
from regimes.research.hpo_benchmark.scores import Scores, mean_difference, saving

QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
MARGINS = (0.5, 1.0, 2.0)  # distance of the target from the baseline's final error, in units of seed noise


def methods_table(scores: Scores, setup: BenchmarkSetup, methods: Sequence[SearchMethod] = METHODS) -> TextTable:
    """Return time, time saved and final test error of each method."""
    by_name = {method.name: method for method in methods}
    head = [
        "search",
        "seconds",
        "saved in total",
        "to the target",
        "saved to target",
        "target missed",
        "test error, %",
        "minus TPE's, points",
    ]
    rows, facts = [[*head, "not worse"]], []
    for name, times in scores.times.items():
        apart = mean_difference(scores.errors[name], scores.errors[BASE])
        whole, sooner = (saving(ours[name], ours[BASE]) for ours in (scores.seconds, scores.times))
        shown = name != BASE and not scores.worse(name)
        rows.append(
            [
                name,
                f"{np.median(scores.seconds[name]):.0f}",
                whole.percent() if shown else "-",
                _seconds(float(np.median(times))),
                sooner.percent() if shown else "-",
                f"{sum(math.isinf(each) for each in times)} of {len(times)}",
                f"{100 * float(np.mean(scores.errors[name])):.2f}",
                "-" if name == BASE else apart.points(),
                "-" if name == BASE else "no" if scores.worse(name) else "yes",
            ]
        )
        of = {"seconds": scores.seconds[name], "times": times, "errors": scores.errors[name]}
        numbers = {key: np.quantile(each, QUARTILES, method="nearest").tolist() for key, each in of.items()}
        told = {"saves": asdict(whole), "saves_to_target": asdict(sooner), "apart": asdict(apart)}
        what = {"arm": name, "courses": setup.fidelity_names(by_name[name])[:-1], "searches": len(times)}
        mean = float(np.mean(scores.errors[name]))
        facts.append({**what, "mean_error": mean, "quartiles": numbers, **told})
    return TextTable("Search methods", rows, _notes(scores, setup, by_name), facts)


def _notes(scores: Scores, setup: BenchmarkSetup, methods: Mapping[str, SearchMethod]) -> list[str]:
    noise = f"{100 * scores.noise:.2f} points"
    default = 100 * float(np.mean(setup.table.facts["default"]["test_error"]))
    base = 100 * float(np.mean(scores.errors[BASE]))
    return [
        f"{setup.trials} trials out of {len(setup.table.settings)} recorded settings, {len(scores.times[BASE])} paired "
        "searches; each sees its own draw of the recorded trainings; medians; 95 % intervals by bootstrap over "
        "searches: they hold for this recording, not for other data",
        "seconds: one process on one core, including proxies, pairs, map, sampling and validation; "
        "saved: 1 - seconds / TPE's, shown where the search is not worse",
        f"target: mean final test error of TPE on the full network plus one standard deviation of seed noise "
        f"({noise}): {100 * scores.target:.2f} %; reached when the incumbent is within it for good",
        f"not worse: the upper end of the difference to TPE's test error is within {noise}",
        f"without a search: the default recipe has {default:.2f} % test error, {default - base:+.2f} points",
        *(f"{name}: {methods[name].description}{_chosen(setup, methods[name])}" for name in scores.times),
    ]


def _chosen(setup: BenchmarkSetup, method: SearchMethod) -> str:
    """Networks that a method chose, if its description does not name them."""
    chosen = setup.fidelity_names(method)[:-1]
    return "" if tuple(chosen) == method.fidelities else f" ({', '.join(chosen) or 'the full network alone'})"


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0f}"


def targets_table(scores: Scores) -> TextTable:
    """Return the time saved for several targets."""
    others = {margin: Scores.of(scores.found, scores.tested, scores.noise, margin) for margin in MARGINS}
    told = (f"at {100 * other.target:.2f} % ({margin:g} sd)" for margin, other in others.items())
    rows, facts = [["search", *told]], []
    for name in scores.times:
        if name == BASE:
            continue
        saved = {margin: saving(other.times[name], other.times[BASE]) for margin, other in others.items()}
        rows.append([name, *(each.percent() for each in saved.values())])
        facts.append({"arm": name, **{f"{margin:g}": asdict(each) for margin, each in saved.items()}})
    notes = ["time to the target saved compared with TPE on the full network, whatever the final error"]
    return TextTable("Time saved at other targets", rows, notes, facts)
