"""Agreement between the ranking of settings by a cheap fidelity and by the full network."""

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
BOOTSTRAP_DRAWS = 300
TOP_SHARE = 0.1  # best settings counted by `recall`
CANDIDATES = 5  # first settings of a ranking considered by `regret`


@dataclass(frozen=True)
class RankingQuality:
    """Ranking quality of a fidelity.

    Attributes:
        name: name of the fidelity, or of the part of the full training.
        tau, top_half: Kendall's tau with the full network's validation value over all settings, and over the better
            half of them.
        less: tau minus the tau of two seeds of the full network over the same settings.
        spearman: Spearman's rank correlation over all settings.
        recall: share of the full network's best tenth that is in the fidelity's best tenth.
        regret: expected test error of the full network's choice among the fidelity's first five, minus that of its
            choice among all settings.
        cost, alone: seconds as a share of a full training's; in fleets where that is faster, and one by one.
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


def ranking_quality(
    table: SearchTable, fidelity: str, epoch: int | None = None, value: str = "calibrated"
) -> RankingQuality:
    """Compare a fidelity with trainings of the full network with other seeds.

    Args:
        table: recorded table.
        fidelity: name of the fidelity.
        epoch: last epoch of the fidelity's training; None: all.
        value: validation value that settings are ranked by.
    """
    stop = epoch or table.epochs
    pairs, again = pairs_of(table, fidelity, stop, value), pairs_of(table, FULL, table.epochs, value)
    name = fidelity if stop == table.epochs else f"{fidelity}, {stop} of {table.epochs} epochs"
    part = stop / table.epochs
    return RankingQuality(
        "full, another seed" if fidelity == FULL and stop == table.epochs else name,
        bootstrap(lambda at: mean_of(tau, pairs, at), len(table.settings)),
        bootstrap(lambda at: mean_of(better_tau, pairs, at), len(table.settings)),
        bootstrap(lambda at: mean_of(tau, pairs, at) - mean_of(tau, again, at), len(table.settings)),
        bootstrap(lambda at: mean_of(lambda a, b: float(spearmanr(a, b).statistic), pairs, at), len(table.settings)),
        bootstrap(lambda at: mean_of(recall, pairs, at), len(table.settings)),
        float(np.mean([regret(cheap, full, table.unseen_test_errors()) for cheap, full in pairs])),
        table.cost(fidelity) * part,
        table.cost(fidelity, together=False) * part,
    )


def pairs_of(table: SearchTable, fidelity: str, epoch: int, value: str = "calibrated") -> Pairs:
    """Return all pairs of a training of the fidelity and one of the full network, never a training with itself."""
    cheap = table.arrays[value][table.positions[fidelity], :, :SEARCHED, epoch - 1]
    full = [table.final_values(FULL, seed, value) for seed in range(SEARCHED)]
    known = [seed for seed in range(SEARCHED) if not np.isnan(cheap[:, seed]).any()]
    return [(cheap[:, i], full[j]) for i in known for j in range(SEARCHED) if fidelity != FULL or i != j]


def mean_of(measure: Callable[[Numbers, Numbers], float], pairs: Pairs, at: NDArray[np.int64]) -> float:
    """Return the mean of a measure over pairs of trainings, for selected settings."""
    return float(np.mean([measure(cheap[at], full[at]) for cheap, full in pairs]))


def tau(cheap: Numbers, full: Numbers) -> float:
    """Return Kendall's tau-b."""
    return float(kendalltau(cheap, full).statistic)


def better_tau(cheap: Numbers, full: Numbers) -> float:
    """Return Kendall's tau over the half of the settings that is better by the full network."""
    better = np.argsort(full, kind="stable")[: len(full) // 2]
    return tau(cheap[better], full[better])


def recall(cheap: Numbers, full: Numbers) -> float:
    """Return the share of the best tenth of one ranking that is in the best tenth of the other."""
    count = max(1, round(TOP_SHARE * len(full)))
    best = [set(np.argsort(each, kind="stable")[:count].tolist()) for each in (cheap, full)]
    return len(best[0] & best[1]) / count


def regret(cheap: Numbers, full: Numbers, tested: Numbers) -> float:
    """Return the loss in test error if the full network chooses among the first few of another ranking."""
    first = np.argsort(cheap, kind="stable")[:CANDIDATES]
    return float(tested[first[np.argmin(full[first])]] - tested[np.argmin(full)])


def bootstrap(measure: Callable[[NDArray[np.int64]], float], count: int, seed: int = 0) -> Interval:
    """Return a measure with its percentile interval by bootstrap over ``count`` settings."""
    draws = [measure(chosen) for chosen in np.random.default_rng(seed).integers(count, size=(BOOTSTRAP_DRAWS, count))]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(measure(np.arange(count)), float(low), float(high))
