"""How well a cheap training ranks settings as the full one does, beside what another seed of the full network does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from regimes.research.hpo_benchmark.fidelities import FULL, SEARCHED
from regimes.research.hpo_benchmark.scores import Interval
from regimes.research.hpo_benchmark.table import SearchTable

Numbers = NDArray[np.float64]
Pairs = Sequence[tuple[Numbers, Numbers]]  # (cheap, full): values of all settings, of trainings with different seeds
DRAWS = 300  # of the bootstrap, over settings
TOP = 0.1  # share of the settings that are to be recalled
CHOSEN = 5  # settings among which the best is looked for: regret


@dataclass(frozen=True)
class RankingQuality:
    """How a cheap training ranks settings.

    Attributes:
        name: of the course, or part of the full training.
        tau, top_half: Kendall's tau with the full network's validation value over all settings, and over the better
            half of them.
        less: that tau, less the tau of two seeds of the full network, over the same settings.
        spearman: rank correlation over all settings.
        recall: share of the full network's best tenth that is in this one's.
        regret: expected test error of what the full network's validation value chooses of this one's first five, less
            that of what it chooses of all settings.
        cost, alone: seconds, as a share of a full training's; in fleets where that is faster, and one by one.
    """

    name: str
    tau: Interval
    top_half: Interval
    less: Interval
    spearman: Interval
    recall: Interval
    regret: float
    cost: float
    alone: float


def fidelity(tape: SearchTable, course: str, epoch: int | None = None, value: str = "calibrated") -> RankingQuality:
    """Judge a course, trained to some epoch (None: to its end), by trainings of the full network with other seeds."""
    stop = epoch or tape.epochs
    pairs, again = pairs_of(tape, course, stop, value), pairs_of(tape, FULL, tape.epochs, value)
    name = course if stop == tape.epochs else f"{course}, {stop} of {tape.epochs} epochs"
    part = stop / tape.epochs
    return RankingQuality(
        "full, another seed" if course == FULL and stop == tape.epochs else name,
        bootstrap(lambda at: mean_of(tau, pairs, at), len(tape.settings)),
        bootstrap(lambda at: mean_of(better_tau, pairs, at), len(tape.settings)),
        bootstrap(lambda at: mean_of(tau, pairs, at) - mean_of(tau, again, at), len(tape.settings)),
        bootstrap(lambda at: mean_of(lambda a, b: float(spearmanr(a, b).statistic), pairs, at), len(tape.settings)),
        bootstrap(lambda at: mean_of(recall, pairs, at), len(tape.settings)),
        float(np.mean([regret(cheap, full, tape.unseen()) for cheap, full in pairs])),
        tape.cost(course) * part,
        tape.cost(course, together=False) * part,
    )


def pairs_of(tape: SearchTable, course: str, epoch: int, value: str = "calibrated") -> Pairs:
    """A course's trainings beside the full network's, never one beside itself."""
    cheap = tape.arrays[value][tape.courses[course], :, :SEARCHED, epoch - 1]
    full = [tape.last(FULL, seed, value) for seed in range(SEARCHED)]
    known = [seed for seed in range(SEARCHED) if not np.isnan(cheap[:, seed]).any()]
    return [(cheap[:, i], full[j]) for i in known for j in range(SEARCHED) if course != FULL or i != j]


def mean_of(measure: Callable[[Numbers, Numbers], float], pairs: Pairs, at: NDArray[np.int64]) -> float:
    """A measure of some settings, the mean over pairs of trainings."""
    return float(np.mean([measure(cheap[at], full[at]) for cheap, full in pairs]))


def tau(cheap: Numbers, full: Numbers) -> float:
    """Kendall's tau-b."""
    return float(kendalltau(cheap, full).statistic)


def better_tau(cheap: Numbers, full: Numbers) -> float:
    """Kendall's tau over the half that is better by the full network."""
    better = np.argsort(full, kind="stable")[: len(full) // 2]
    return tau(cheap[better], full[better])


def recall(cheap: Numbers, full: Numbers) -> float:
    """Share of the best tenth by one that is in the best tenth by the other."""
    count = max(1, round(TOP * len(full)))
    best = [set(np.argsort(each, kind="stable")[:count].tolist()) for each in (cheap, full)]
    return len(best[0] & best[1]) / count


def regret(cheap: Numbers, full: Numbers, tested: Numbers) -> float:
    """What is lost in test error where the full network chooses among the first few of another ranking."""
    first = np.argsort(cheap, kind="stable")[:CHOSEN]
    return float(tested[first[np.argmin(full[first])]] - tested[np.argmin(full)])


def bootstrap(measure: Callable[[NDArray[np.int64]], float], count: int, seed: int = 0) -> Interval:
    """A measure of so many settings with a percentile interval over them."""
    draws = [measure(chosen) for chosen in np.random.default_rng(seed).integers(count, size=(DRAWS, count))]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(measure(np.arange(count)), float(low), float(high))
