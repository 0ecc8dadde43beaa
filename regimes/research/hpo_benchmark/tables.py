"""The tables of a replay: what each way to search took and came to, and how that rests on the target."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.methods import BASE, METHODS, SearchMethod
from regimes.research.hpo_benchmark.run_method import BenchmarkSetup
from regimes.research.hpo_benchmark.scores import Scores, mean_difference, saving

QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the searches, for machines
MARGINS = (0.5, 1.0, 2.0)  # standard deviations of seed noise by which targets lie above what the base line ends with


def arms_sheet(scores: Scores, stage: BenchmarkSetup) -> TextTable:
    """Seconds, savings and equality, arm by arm."""
    head = [
        "search",
        "seconds",
        "saves in all",
        "to the target",
        "saves there",
        "missed",
        "test error, %",
        "less TPE's, points",
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
        numbers = {key: np.quantile(each, QUARTERS, method="nearest").tolist() for key, each in of.items()}
        told = {"saves": asdict(whole), "saves_to_target": asdict(sooner), "apart": asdict(apart)}
        what = {"arm": name, "courses": stage.courses(_arm(name))[:-1], "searches": len(times)}
        mean = float(np.mean(scores.errors[name]))
        facts.append({**what, "mean_error": mean, "quartiles": numbers, **told})
    return TextTable("Ways to search", rows, _notes(scores, stage), facts)


def _arm(name: str) -> SearchMethod:
    return next(each for each in METHODS if each.name == name)


def _notes(scores: Scores, stage: BenchmarkSetup) -> list[str]:
    noise = f"{100 * scores.noise:.2f} points"
    default = 100 * float(np.mean(stage.tape.facts["default"]["test_error"]))
    base = 100 * float(np.mean(scores.errors[BASE]))
    return [
        f"{stage.trials} trials out of {len(stage.tape.settings)} recorded settings, {len(scores.times[BASE])} paired "
        "searches; each sees its own draw of the recorded trainings; medians; intervals hold 95 %, by bootstrap over "
        "searches: of this recording, not of other data",
        "seconds: one process on one core; making proxies, pairs, the map, drawing settings and judging are counted; "
        "saves: 1 - seconds / TPE's, shown where the search is not worse",
        f"target: the mean test error that TPE on the full network ends with, and one standard deviation of seed noise "
        f"({noise}): {100 * scores.target:.2f} %; reached when what is held is within it and stays so",
        f"not worse: the upper end of the difference to TPE's test error is within {noise}",
        f"no search at all: the default recipe has {default:.2f} % test error, {default - base:+.2f} points",
        *(f"{name}: {_arm(name).what}{_told(stage, name)}" for name in scores.times),
    ]


def _told(stage: BenchmarkSetup, name: str) -> str:
    """Which networks an arm came to, where its words do not say it."""
    arm = _arm(name)
    chosen = stage.courses(arm)[:-1]
    return "" if tuple(chosen) == arm.courses else f" ({', '.join(chosen) or 'the full network alone'})"


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0f}"


def targets_sheet(scores: Scores) -> TextTable:
    """How savings rest on where the target lies."""
    others = {margin: Scores.of(scores.found, scores.tested, scores.noise, margin) for margin in MARGINS}
    told = (f"at {100 * other.target:.2f} % ({margin:g} sd)" for margin, other in others.items())
    rows, facts = [["search", *told]], []
    for name in scores.times:
        if name == BASE:
            continue
        saved = {margin: saving(other.times[name], other.times[BASE]) for margin, other in others.items()}
        rows.append([name, *(each.percent() for each in saved.values())])
        facts.append({"arm": name, **{f"{margin:g}": asdict(each) for margin, each in saved.items()}})
    notes = ["seconds to the target saved beside TPE's on the full network, whatever a search ends with"]
    return TextTable("Savings at other targets", rows, notes, facts)
