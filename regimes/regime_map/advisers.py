"""Advisers: decision rules that choose a temperature at one load.

An adviser is a function ``(candidates, grid) -> cost`` that returns an array (draws, m): the cost of each of the m
`Candidates` in each posterior draw. The candidate with the lowest mean cost is chosen. "barrier", "regime",
"similarity" and "combined" use LMC and CKA only, as the three-regime study does (Zhou et al. 2023, arXiv 2305.18383),
"landscape" also the training error, and "fitted", "error" and "joint" the test errors of the pruned networks. To add
one, write such a function and register it in `ADVISERS`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regimes.errors import UserError
from regimes.regime_map.candidates import Candidates, once_per_load
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

EXCLUDED_COST = 1e6  # cost of a candidate that is never chosen
MIN_RELATIVE_GAIN = 0.01  # relative drop of the test error needed to leave the current temperature
RIDGE_PENALTY = 1.0  # of the regression in `fitted`, in cells
# Smallest standard deviation to standardise by, on the transformed scale; also the measures that "fitted" learns from.
MIN_SPREAD = {"lmc": 0.3, "cka": 0.05, "train_error": 0.3, "hessian_trace": 0.2}


def barrier(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Choose the next hotter temperature if there is a barrier, else the next colder one, as in the three-regime study.

    Without a current temperature: the coldest connected one, or the hottest if none is connected.
    """
    if candidates.current is None:
        return _coldest_connected(candidates)
    hotter, colder = neighbour(candidates, 1), neighbour(candidates, -1)
    return votes(candidates, np.where(candidates.connected[:, candidates.current], colder, hotter))


def regime(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Choose the nearest hotter connected temperature in I, the nearest colder similar one in II-A, and stay in II-B.

    If there is none, the hottest (coldest) temperature. Without a current temperature: as `similarity`.
    """
    if candidates.current is None:
        return similarity(candidates, m)
    apart = candidates.temperature - candidates.temperature[candidates.current]
    hotter = np.where(
        candidates.connected & (apart > 0), apart, np.where(apart > 0, EXCLUDED_COST - apart, 2 * EXCLUDED_COST)
    )
    good = candidates.connected & candidates.similar
    colder = np.where(good & (apart < 0), -apart, np.where(apart < 0, EXCLUDED_COST + apart, 2 * EXCLUDED_COST))
    wanted = np.where(candidates.connected[:, [candidates.current]], colder, hotter)
    wanted[:, candidates.current] = 1.5 * EXCLUDED_COST
    chosen = wanted.argmin(1)
    return votes(candidates, np.where(good[:, candidates.current], candidates.current, chosen))


@once_per_load
def similarity(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Choose the highest CKA among connected temperatures, or the smallest barrier if none is connected."""
    return votes(candidates, np.where(candidates.connected, -candidates.cka, EXCLUDED_COST - candidates.lmc).argmin(1))


@once_per_load
def combined(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Weigh a small barrier and a high CKA equally, each in standard deviations over the candidates."""
    return -_standard(np.minimum(candidates.lmc, 0.0), "lmc") - _standard(candidates.cka, "cka")


@once_per_load
def landscape(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Weigh a small barrier, a high CKA and, where it is known, a low training error equally."""
    cost = combined(candidates, m)
    if not m.has("train_error"):
        return cost
    return cost + _standard(_drawn(candidates, m, "train_error"), "train_error")


def fitted(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Predict the log error from LMC, CKA and, where known, training error and Hessian trace.

    By ridge regression on the grid's other densities.

    Features and target are centred within each density, so that the regression learns which temperature is better, not
    which density.

    Raises:
        UserError: the grid has no test errors to learn from.
    """
    if not m.has_test_error:
        raise UserError("adviser 'fitted' needs test errors, and this grid has none; use 'landscape'")
    return _learnt(candidates, m)[0]


def joint(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Combine the posterior of the log error with the prediction of `fitted`, weighted by their precisions.

    Raises:
        UserError: the grid has no test errors.
    """
    cost = _weighted_with_error(candidates, m).copy()
    if candidates.current is not None:
        cost[:, candidates.current] -= MIN_RELATIVE_GAIN
    return cost


@once_per_load
def _weighted_with_error(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """The cost of `joint` without a current temperature."""
    if candidates.error is None:
        raise UserError("adviser 'joint' needs test errors, and this grid has none; use 'landscape'")
    learnt, beside = _learnt(candidates, m)
    error, learnt = (each - each.mean(1, keepdims=True) for each in (candidates.error, learnt))
    total = beside + float(error.var(0).mean())
    share = 1.0 if np.isinf(beside) or total == 0 else beside / total
    astray = np.sqrt(beside) if np.isfinite(beside) else 0.0  # what is learnt may miss, a temperature at a time
    learnt = learnt + astray * np.random.default_rng(1).standard_normal(learnt.shape)
    return np.asarray(share * error + (1 - share) * learnt)


def error(candidates: Candidates, m: MeasuredGrid) -> Numbers:
    """Choose the lowest expected test error; to leave the current temperature, it must be at least 1 % lower.

    Raises:
        UserError: the grid has no test errors.
    """
    if candidates.error is None:
        raise UserError("adviser 'error' needs test errors, and this grid has none; use 'landscape'")
    cost = candidates.error.copy()
    if candidates.current is not None:
        cost[:, candidates.current] -= MIN_RELATIVE_GAIN
    return cost


@once_per_load
def _learnt(candidates: Candidates, m: MeasuredGrid) -> tuple[Numbers, float]:
    """Log errors (draws, m) of the candidates predicted from the landscape, up to a constant, and residual variance.

    The ridge regression is fitted at the other densities of the grid.
    """
    loads = m.load_coordinates(m.places)
    names = [name for name in MIN_SPREAD if m.has(name)]
    learnt = m.usable & np.isfinite([m.mean(name) for name in ("test_error", *names)]).all(0)
    learnt &= np.abs(loads - m.load_coordinates(candidates.places[0])).max(1) > 1e-9
    features, target = [], []
    for each in np.unique(loads[learnt], axis=0):
        cells = learnt & (np.abs(loads - each).max(1) < 1e-9)
        features.append(
            np.stack([_standard(m.transform(name).forward(m.mean(name)[cells]), name) for name in names], 1)
        )
        errors = m.transform("test_error").forward(m.mean("test_error")[cells])
        target.append(errors - errors.mean())
    if not features:
        return combined(candidates, m), float("inf")
    X, y = np.concatenate(features), np.concatenate(target)
    weights = np.linalg.solve(X.T @ X + RIDGE_PENALTY * np.eye(len(names)), X.T @ y)
    missed = float(((y - X @ weights) ** 2).sum() / max(len(y) - len(features) - len(names), 1))
    drawn = [_standard(_drawn(candidates, m, name), name) for name in names]
    return np.tensordot(weights, drawn, 1), missed


def _drawn(candidates: Candidates, m: MeasuredGrid, name: str) -> Numbers:
    """Posterior draws (draws, m) of a measure at the candidates, on its transformed scale."""
    if name in ("lmc", "cka"):
        return candidates.lmc if name == "lmc" else candidates.cka
    return m.surface(name).sample(candidates.places, len(candidates.lmc), np.random.default_rng(6))


def _standard(values: Numbers, name: str) -> Numbers:
    """Standardise over the candidates; standard deviations below the minimum are replaced by it."""
    spread = np.maximum(values.std(-1, keepdims=True), MIN_SPREAD[name])
    return (values - values.mean(-1, keepdims=True)) / spread


def _coldest_connected(candidates: Candidates) -> Numbers:
    return votes(
        candidates,
        np.where(candidates.connected, candidates.temperature, EXCLUDED_COST - candidates.temperature).argmin(1),
    )


def neighbour(candidates: Candidates, way: int) -> int:
    """Index of the next hotter (way = 1) or colder (-1) candidate along one knob; the current one at the end."""
    assert candidates.current is not None
    steps = way * (candidates.places - candidates.places[candidates.current])
    apart = steps.sum(1)
    beyond = np.flatnonzero((np.abs(steps) > 1e-9).sum(1) == 1)
    beyond = beyond[apart[beyond] > 1e-9]
    return int(beyond[apart[beyond].argmin()]) if len(beyond) else candidates.current


def votes(candidates: Candidates, chosen: NDArray[np.intp]) -> Numbers:
    """Cost 0 for the candidate that a draw chooses, 1 for all others."""
    return (np.arange(len(candidates.temperature)) != chosen[:, None]).astype(float)
