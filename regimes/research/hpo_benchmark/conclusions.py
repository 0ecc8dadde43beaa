"""What the tables of a replay come to, in plain words: each follows from intervals alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from regimes.research.hpo_benchmark.comparisons import Comparison
from regimes.research.hpo_benchmark.methods import BASE, OURS, OWN_STOCK
from regimes.research.hpo_benchmark.scores import Interval, Scores

OF_BASE, OF_STOCK = 0.8, 0.3  # of the time, that ours is meant to save beside the base line and the best stock stopper
WIDTH, MAP = "Is pruning more than width?", "Does the map pay?"


def in_words(scores: Scores, found: Sequence[Comparison]) -> list[str]:
    """Paragraphs: what ours saves, beside which stopper, whether pruning matters, whether the map pays."""
    said = [_saved(scores), _beside_stoppers(scores)] if OURS.name in scores.times else []
    said += [_width([each for each in found if each.question == WIDTH])]
    said += [_map(scores, [each for each in found if each.question == MAP])]
    return [each for each in said if each]


def _saved(scores: Scores) -> str:
    ours = Comparison.of(scores, OURS.name, BASE)
    ends = "It may end worse" if scores.worse(OURS.name) else "It ends no worse"
    told = f"{ends}: {ours.apart.points()} points of test error, {100 * scores.noise:.2f} allowed."
    return f"**What does it save?** *{OURS.name}*, beside {BASE}, {_goal(ours, OF_BASE)} {told}"


def _beside_stoppers(scores: Scores) -> str:
    asked = "**Beside Optuna's stoppers?**"
    as_good = [each for name in OWN_STOCK if (each := f"TPE + {name}") in scores.times and not scores.worse(each)]
    if not as_good:
        return f"{asked} None of them, as it is made by default, is shown to end no worse than {BASE}."
    best = min(as_good, key=lambda name: float(np.median(scores.seconds[name])))
    told = _goal(Comparison.of(scores, OURS.name, best), OF_STOCK)
    return f"{asked} Of those that end no worse, *{best}* is the fastest. *{OURS.name}*, beside it, {told}"


def _goal(ours: Comparison, goal: float) -> str:
    """What ours saves, in all and to the target, and whether that is what was aimed at."""
    whole, sooner = _reached(ours.whole, goal), _reached(ours.sooner, goal)
    both = whole if whole == sooner else f"{whole} in all, {sooner} to the target"
    return (
        f"saves {ours.whole.percent()} of the time in all, and {_at_the_target(ours.sooner)}; "
        f"{100 * goal:.0f} % were aimed at: {both}."
    )


def _at_the_target(found: Interval) -> str:
    if found.value >= 1:
        return "comes to the target, where the other does not"
    return f"{found.percent()} of the time to the target" if math.isfinite(found.value) else "misses the target"


def _reached(found: Interval, goal: float) -> str:
    """By the figures as they are shown; sure where all of the interval is beyond."""
    if round(found.value, 2) < goal:
        return "not reached"
    return "reached" if round(found.low, 2) >= goal else "reached, but not all of the interval"


def _width(found: Sequence[Comparison]) -> str:
    """By how many comparisons of what is pruned with what is plainly narrower speak for either alone."""
    if not found:
        return ""
    pruned = sum(bool(each.better) and not each.worse for each in found)
    plain = sum(bool(each.worse) and not each.better for each in found)
    mostly = "Pruning does." if pruned > plain else "Mostly width." if pruned < plain else "Undecided."
    short = mostly if pruned else "Only width."
    told = f"Of {len(found)} comparisons {pruned} speak for pruning, {plain} for plainly narrower layers."
    return f"**Does pruning matter, or only width?** {short} {told} {_listed(found)}"


def _map(scores: Scores, found: Sequence[Comparison]) -> str:
    """It pays where a search with it is better than each without, and worse in nothing."""
    if not found:
        return ""
    pays = all(each.better and not each.worse for each in found)
    spent = np.median([each.overhead for each in scores.found[found[0].one]])
    return f"**Does the map pay?** {'Yes.' if pays else 'No.'} {_listed(found)} It takes {spent:.0f} s of it."


def _listed(found: Sequence[Comparison]) -> str:
    return " ".join(f"*{each.one}* beside *{each.other}*: {each.verdict}." for each in found)
