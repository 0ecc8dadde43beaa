"""How well a cheap training ranks settings as the full one does, beside what another seed of the full network does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from regimes.proof.courses import FULL
from regimes.proof.scores import Interval
from regimes.proof.tape import Tape

Numbers = NDArray[np.float64]
DRAWS = 500  # of the bootstrap, over settings
TOP = 0.1  # share of the settings that are to be recalled
CHOSEN = 5  # settings among which the best is looked for: regret


@dataclass(frozen=True)
class Fidelity:
    """How a cheap training ranks settings.

    Attributes:
        name: of the course, or part of the full training.
        tau, top_half: Kendall's tau with the full network's validation value over all settings, and over the better
            half of them.
        spearman: rank correlation over all settings.
        recall: share of the full network's best tenth that is in this one's.
        regret: expected test error of the best of this one's first five, less the least of all settings.
        cost: seconds, as a share of a full training.
    """

    name: str
    tau: Interval
    top_half: Interval
    spearman: Interval
    recall: Interval
    regret: float
    cost: float


def fidelity(
    tape: Tape, course: str, epoch: int | None = None, value: str = "calibrated", seed: int = 0, other: int = 1
) -> Fidelity:
    """Judge a course, trained to some epoch (None: to its end), by a training of the full network with another seed."""
    stop = epoch or tape.epochs
    full = tape.last(FULL, other, value)
    cheap = tape.arrays[value][tape.courses[course], :, seed if course == FULL else 0, stop - 1]
    tested = tape.tested(without=seed) if course == FULL else tape.tested()
    better = np.argsort(full)[: len(full) // 2]
    first = np.argsort(cheap, kind="stable")[:CHOSEN]
    name = course if stop == tape.epochs else f"{course}, {stop} of {tape.epochs} epochs"
    return Fidelity(
        "full, another seed" if course == FULL and stop == tape.epochs else name,
        bootstrap(tau, cheap, full),
        bootstrap(tau, cheap[better], full[better]),
        bootstrap(lambda a, b: float(spearmanr(a, b).statistic), cheap, full),
        bootstrap(recall, cheap, full),
        float(tested[first].min() - tested.min()),
        tape.cost(course) * stop / tape.epochs,
    )


def tau(cheap: Numbers, full: Numbers) -> float:
    """Kendall's tau-b."""
    return float(kendalltau(cheap, full).statistic)


def recall(cheap: Numbers, full: Numbers) -> float:
    """Share of the best tenth by one that is in the best tenth by the other."""
    count = max(1, round(TOP * len(full)))
    best = [set(np.argsort(each, kind="stable")[:count].tolist()) for each in (cheap, full)]
    return len(best[0] & best[1]) / count


def bootstrap(measure: Callable[[Numbers, Numbers], float], cheap: Numbers, full: Numbers, seed: int = 0) -> Interval:
    """A measure of two rankings with a percentile interval over settings."""
    random = np.random.default_rng(seed)
    draws = [measure(cheap[chosen], full[chosen]) for chosen in random.integers(len(full), size=(DRAWS, len(full)))]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(measure(cheap, full), float(low), float(high))


def local(tape: Tape, course: str, name: str, edges: Numbers) -> list[tuple[float, float]]:
    """(tau of a course, tau of another seed) over the settings in each bin of a hyperparameter."""
    values = np.array([each[name] for each in tape.settings])
    full, again, cheap = tape.last(FULL, 1), tape.last(FULL, 0), tape.last(course)
    found = []
    for low, high in itertools.pairwise(edges):
        here = (values >= low) & (values < high)
        found.append((tau(cheap[here], full[here]), tau(again[here], full[here])))
    return found
