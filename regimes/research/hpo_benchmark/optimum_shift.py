"""Shift of the optimal hyperparameters between a proxy and the full network.

The best learning rate, weight decay and SAM rho depend on the size of the network. The losses of both networks are
modelled by one surface, displaced for the full network; the displacement gives the factors that map a setting of the
full network to the proxy's counterpart.
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
SHIFTED_KNOBS = ("learning_rate", "weight_decay", "sam_rho")
MAX_FACTOR = 8.0  # up or down
PRIOR_FACTOR = 2.0  # one standard deviation of the prior on a factor
RIDGE_PENALTY = 1e-2  # on the coefficients of the surface
BOOTSTRAP_DRAWS = 200


@dataclass(frozen=True)
class OptimumShift:
    """Factors that map settings of the full network to those of the proxy.

    Attributes:
        factors: {hyperparameter: factor}.
        low, high: 95 % intervals by bootstrap over the proxy's settings and over the pairs.
        pairs: number of settings that both networks were trained with.
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
    those by which it best fits the full network's, up to a linear scale, with a log-normal prior of scale
    `PRIOR_FACTOR`.

    Args:
        settings: (n,) settings that the proxy was trained with.
        small: (n,) losses of the proxy; infinite where it diverged.
        full: (n,) losses of the full network; NaN where it was not trained.
        space: search space.
        seed: seed of the bootstrap.
    """
    names = [name for name in SHIFTED_KNOBS if name in space and space[name].choices is None]
    paired = np.flatnonzero(~np.isnan(full))
    places, ranks = place(settings, space), scores(small)

    def best(surface: Numbers, chosen: NDArray[np.int64]) -> Numbers:
        target = scores(full[chosen])
        some = places[chosen]

        def misfit(logs: Numbers) -> float:
            there = _moved(some, space, dict(zip(names, logs, strict=True)))
            expected = _features(there) @ surface
            residual = target - np.polyval(np.polyfit(expected, target, 1), expected) if np.ptp(expected) else target
            return float(len(chosen) * np.log((residual**2).mean() + 1e-3) + np.sum((logs / np.log(PRIOR_FACTOR)) ** 2))

        limits = [(-np.log(MAX_FACTOR), np.log(MAX_FACTOR))] * len(names)
        return np.asarray(minimize(misfit, np.zeros(len(names)), method="Powell", bounds=limits).x)

    def again() -> Numbers:
        drawn = random.integers(len(settings), size=len(settings))
        return best(_surface(places[drawn], ranks[drawn]), random.choice(paired, len(paired)))

    value, random = best(_surface(places, ranks), paired), np.random.default_rng(seed)
    draws = np.array([again() for _ in range(BOOTSTRAP_DRAWS)])
    low, high = np.exp(np.quantile(draws, [0.025, 0.975], axis=0))
    told = [dict(zip(names, map(float, each), strict=True)) for each in (np.exp(value), low, high)]
    return OptimumShift(told[0], told[1], told[2], len(paired))


def scores(losses: Numbers) -> Numbers:
    """Return the normal scores of the losses' ranks; robust to heavy tails and diverged trainings."""
    ranks = rankdata(losses)
    return np.asarray(ndtri((ranks - 0.5) / len(ranks)))


def place(settings: Sequence[Mapping[str, Any]], space: Mapping[str, Dimension]) -> Numbers:
    """Return settings as points (n, hyperparameters by name) in the unit cube of the space."""
    return np.array([[space[name].position(each[name]) for name in sorted(space)] for each in settings])


def _moved(places: Numbers, space: Mapping[str, Dimension], logs: Mapping[str, float]) -> Numbers:
    """Points of settings with some values multiplied by the exponentials of ``logs``."""
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
    ridge = RIDGE_PENALTY * len(features) * np.eye(features.shape[1])
    ridge[0, 0] = 0.0
    return np.asarray(np.linalg.solve(features.T @ features + ridge, features.T @ values))
