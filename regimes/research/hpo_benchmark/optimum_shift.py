"""How far a proxy's best hyperparameters lie from the full network's, and by what factors to correct them.

Learning rate, weight decay and SAM's rho that suit a small network do not suit a large one. Both networks' losses are
taken for one surface, the full network's displaced: what is looked for are the factors by which a setting of the full
network has to be multiplied to be the proxy's counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import ndtri
from scipy.stats import rankdata

from regimes.config.hpo import Dimension
from regimes.regime_map.blas_threads import one_blas_thread

Numbers = NDArray[np.float64]
MOVED = ("learning_rate", "weight_decay", "sam_rho")  # what is corrected
MOST = 8.0  # times, up or down
USUAL = 2.0  # times: what a shift is held to be beforehand
RIDGE = 1e-2  # of the surface's coefficients
DRAWS = 200  # of the bootstrap


@dataclass(frozen=True)
class OptimumShift:
    """Factors from the full network's settings to the proxy's.

    Attributes:
        factors: {hyperparameter: factor}.
        low, high: 95 % intervals, by bootstrap over the proxy's settings and over the pairs.
        pairs: settings that both networks were trained with.
    """

    factors: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    pairs: int


@one_blas_thread
def shift_between(
    settings: Sequence[Mapping[str, Any]],
    small: Numbers,
    full: Numbers,
    space: Mapping[str, Dimension],
    seed: int = 0,
) -> OptimumShift:
    """Estimate the shift from a proxy's losses and a few of the full network's.

    A quadratic surface of the hyperparameters is fitted to the normal scores of the proxy's losses; the factors are
    those by which it best fits the full network's, up to a linear scale, held to about `USUAL` beforehand.

    Args:
        settings: (n,) that the proxy was trained with.
        small: (n,) its losses; infinite where it diverged.
        full: (n,) the full network's, NaN where it was not trained.
        space: of the search.
        seed: of the bootstrap.
    """
    names = [name for name in MOVED if name in space and space[name].choices is None]
    paired = np.flatnonzero(~np.isnan(full))
    places, ranks = place(settings, space), scores(small)

    def best(surface: Numbers, chosen: NDArray[np.int64]) -> Numbers:
        target = scores(full[chosen])
        some = places[chosen]

        def misfit(logs: Numbers) -> float:
            there = _moved(some, space, dict(zip(names, logs, strict=True)))
            expected = _features(there) @ surface
            residual = target - np.polyval(np.polyfit(expected, target, 1), expected) if np.ptp(expected) else target
            return float(len(chosen) * np.log((residual**2).mean() + 1e-3) + np.sum((logs / np.log(USUAL)) ** 2))

        limits = [(-np.log(MOST), np.log(MOST))] * len(names)
        return np.asarray(minimize(misfit, np.zeros(len(names)), method="Powell", bounds=limits).x)

    def again() -> Numbers:
        drawn = random.integers(len(settings), size=len(settings))
        return best(_surface(places[drawn], ranks[drawn]), random.choice(paired, len(paired)))

    value, random = best(_surface(places, ranks), paired), np.random.default_rng(seed)
    draws = np.array([again() for _ in range(DRAWS)])
    low, high = np.exp(np.quantile(draws, [0.025, 0.975], axis=0))
    told = [dict(zip(names, map(float, each), strict=True)) for each in (np.exp(value), low, high)]
    return OptimumShift(told[0], told[1], told[2], len(paired))


def scores(losses: Numbers) -> Numbers:
    """Normal scores of ranks: heavy tails and diverged trainings do no harm."""
    ranks = rankdata(losses)
    return np.asarray(ndtri((ranks - 0.5) / len(ranks)))


def place(settings: Sequence[Mapping[str, Any]], space: Mapping[str, Dimension]) -> Numbers:
    """Where settings lie in the unit cube of the space (n, hyperparameters by name)."""
    return np.array([[space[name].share(each[name]) for name in sorted(space)] for each in settings])


def _moved(places: Numbers, space: Mapping[str, Dimension], logs: Mapping[str, float]) -> Numbers:
    """Where settings would lie, some of their values multiplied by the exponentials of logs."""
    found = places.copy()
    for name, log in logs.items():
        at, (low, high) = sorted(space).index(name), space[name].ends
        if space[name].log:
            found[:, at] += log / np.log(high / low)
        else:
            found[:, at] = ((found[:, at] * (high - low) + low) * np.exp(log) - low) / (high - low)
    return found


def _features(places: Numbers) -> Numbers:
    centred = 2 * places - 1
    upper = np.triu_indices(centred.shape[1])
    products = (centred[:, :, None] * centred[:, None, :])[:, upper[0], upper[1]]
    return np.hstack([np.ones((len(centred), 1)), centred, products])


def _surface(places: Numbers, values: Numbers) -> Numbers:
    """Coefficients of a quadratic surface, by ridge regression."""
    features = _features(places)
    ridge = RIDGE * len(features) * np.eye(features.shape[1])
    ridge[0, 0] = 0.0
    return np.asarray(np.linalg.solve(features.T @ features + ridge, features.T @ values))
