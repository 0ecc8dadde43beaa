"""Conclusions of a replay as text; each follows from the intervals alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from regimes.research.hpo_benchmark.comparisons import Comparison
from regimes.research.hpo_benchmark.methods import BASE, OURS, OWN_STOCK
from regimes.research.hpo_benchmark.scores import Interval, Scores

GOAL_VS_BASELINE = 0.8  # share of the baseline's time that our method should save
GOAL_VS_STOPPER = 0.3  # likewise of the best stock stopper's
WIDTH, MAP = "Is pruning more than width?", "Does the map pay?"


def conclusions(scores: Scores, found: Sequence[Comparison], ours: str = OURS.name) -> list[str]:
    """Return paragraphs on time saved, on stock stoppers, on pruning versus width, and on the regime map.

    Args:
        scores: scores of all methods.
        found: the comparisons.
        ours: name of the package's own method.
    """
    said = [_saved(scores, ours), _beside_stoppers(scores, ours)] if ours in scores.times else []
    said += [_width([each for each in found if each.question == WIDTH])]
    said += [_map(scores, [each for each in found if each.question == MAP])]
    return [each for each in said if each]


def _saved(scores: Scores, name: str) -> str:
    ours = Comparison.of(scores, name, BASE)
    ends = "It may end worse" if scores.worse(name) else "It ends no worse"
    told = f"{ends}: {ours.apart.points()} points of test error, {100 * scores.noise:.2f} allowed."
    return f"**What does it save?** *{name}*, compared with {BASE}, {_goal(ours, GOAL_VS_BASELINE)} {told}"


def _beside_stoppers(scores: Scores, ours: str) -> str:
    asked = "**Compared with Optuna's stoppers?**"
    as_good = [each for name in OWN_STOCK if (each := f"TPE + {name}") in scores.times and not scores.worse(each)]
    if not as_good:
        return f"{asked} With default settings, none of them is shown to end no worse than {BASE}."
    best = min(as_good, key=lambda name: float(np.median(scores.seconds[name])))
    told = _goal(Comparison.of(scores, ours, best), GOAL_VS_STOPPER)
    return f"{asked} Of those that end no worse, *{best}* is the fastest. *{ours}*, compared with it, {told}"


def _goal(ours: Comparison, goal: float) -> str:
    """Time that our method saves, in total and to the target, compared with the goal."""
    whole, sooner = _reached(ours.whole, goal), _reached(ours.sooner, goal)
    both = whole if whole == sooner else f"{whole} in total, {sooner} to the target"
    return (
        f"saves {ours.whole.percent()} of the time in total, and {_at_the_target(ours.sooner)}; "
        f"{100 * goal:.0f} % was the goal: {both}."
    )


def _at_the_target(found: Interval) -> str:
    if found.value >= 1:
        return "reaches the target, where the other does not"
    return f"{found.percent()} of the time to the target" if math.isfinite(found.value) else "misses the target"


def _reached(found: Interval, goal: float) -> str:
    """Compare the rounded figures with the goal."""
    if round(found.value, 2) < goal:
        return "not reached"
    return "reached" if round(found.low, 2) >= goal else "reached, but not by the whole interval"


def _width(found: Sequence[Comparison]) -> str:
    """Count the comparisons in favour of pruned and of uniformly narrower networks."""
    if not found:
        return ""
    pruned = sum(bool(each.better) and not each.worse for each in found)
    plain = sum(bool(each.worse) and not each.better for each in found)
    mostly = "Pruning does." if pruned > plain else "Mostly width." if pruned < plain else "Undecided."
    short = mostly if pruned else "Only width."
    told = f"Of {len(found)} comparisons {pruned} favour pruning, {plain} uniformly narrower layers."
    return f"**Does pruning matter, or only width?** {short} {told} {_listed(found)}"


def _map(scores: Scores, found: Sequence[Comparison]) -> str:
    """The map pays if a search with it is better than each search without, and worse in no respect."""
    if not found:
        return ""
    pays = all(each.better and not each.worse for each in found)
    spent = np.median([each.overhead for each in scores.found[found[0].one]])
    return (
        f"**Does the map pay?** {'Yes.' if pays else 'No.'} {_listed(found)} Making the map takes {spent:.0f} s of it."
    )


def _listed(found: Sequence[Comparison]) -> str:
    return " ".join(f"*{each.one}* compared with *{each.other}*: {each.verdict}." for each in found)
