"""Ways to choose a temperature at one load. A new one is a function here, or anywhere, and one line in `ADVISERS`.

An adviser gives each of the `Candidates` a cost in each draw, (draws, m); the lowest is chosen. Those of the
landscape look at LMC and CKA alone, as the three-regime study does (Zhou et al. 2023, arXiv 2305.18383); "error" looks
at the pruned networks' test error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regimes.errors import UserError
from regimes.regime_map.candidates import Candidates
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

FAR = 1e6  # the cost of what is never chosen
MATTERS = 0.01  # of the error: what gains less is no reason to leave
RIDGE = 1.0  # of what is learnt, in cells
LEAST = {"lmc": 0.5, "cka": 0.05}  # spread of candidates on the stretched scale that is taken for one


def barrier(column: Candidates, m: MeasuredGrid) -> Numbers:
    """Where a barrier stands, the next hotter temperature; elsewhere the next colder: the study's reconstruction.

    Asked without a place to stand, the coldest connected temperature, where that ends; the hottest where none is.
    """
    if column.here is None:
        return _coldest_connected(column)
    hotter, colder = _next(column, 1), _next(column, -1)
    return _votes(column, np.where(column.connected[:, column.here], colder, hotter))


def regime(column: Candidates, m: MeasuredGrid) -> Numbers:
    """In I the next hotter connected temperature, in II-A the next colder similar one, in II-B stay.

    Where there is none, as far as there are temperatures. Without a place to stand: as ``similarity``.
    """
    if column.here is None:
        return similarity(column, m)
    apart = column.heat - column.heat[column.here]
    hotter = np.where(column.connected & (apart > 0), apart, np.where(apart > 0, FAR - apart, 2 * FAR))
    good = column.connected & column.similar
    colder = np.where(good & (apart < 0), -apart, np.where(apart < 0, FAR + apart, 2 * FAR))
    wanted = np.where(column.connected[:, [column.here]], colder, hotter)
    wanted[:, column.here] = 1.5 * FAR
    chosen = wanted.argmin(1)
    return _votes(column, np.where(good[:, column.here], column.here, chosen))


def similarity(column: Candidates, m: MeasuredGrid) -> Numbers:
    """The highest CKA among connected temperatures; the smallest barrier where none is connected."""
    return _votes(column, np.where(column.connected, -column.cka, FAR - column.lmc).argmin(1))


def combined(column: Candidates, m: MeasuredGrid) -> Numbers:
    """Small barrier and high CKA in equal parts, each in standard deviations over the candidates."""
    return -_standard(np.minimum(column.lmc, 0.0), "lmc") - _standard(column.cka, "cka")


def fitted(column: Candidates, m: MeasuredGrid) -> Numbers:
    """LMC and CKA weighted as they went with the test error at the other densities of the grid (ridge regression).

    Each measure and the log error are taken in deviations from their density's mean, so what is learnt is which
    temperature is better, not which density.

    Raises:
        UserError: the grid has no test errors to learn from.
    """
    if not m.knows_error:
        raise UserError("adviser 'fitted' learns from test errors, and this grid has none; take 'combined'")
    return _learnt(column, m)[0]


def joint(column: Candidates, m: MeasuredGrid) -> Numbers:
    """All that is known: the expected log error, and what ``fitted`` learns; weighted by how well each is known.

    Raises:
        UserError: the grid has no test errors.
    """
    if column.error is None:
        raise UserError("adviser 'joint' reads the test error, and this grid has none; take 'combined'")
    learnt, beside = _learnt(column, m)
    error, learnt = (each - each.mean(1, keepdims=True) for each in (column.error, learnt))
    total = beside + float(error.var(0).mean())
    share = 1.0 if np.isinf(beside) or total == 0 else beside / total
    astray = np.sqrt(beside) if np.isfinite(beside) else 0.0  # what is learnt may miss, a temperature at a time
    learnt = learnt + astray * np.random.default_rng(1).standard_normal(learnt.shape)
    cost: Numbers = share * error + (1 - share) * learnt
    if column.here is not None:
        cost[:, column.here] -= MATTERS
    return cost


def error(column: Candidates, m: MeasuredGrid) -> Numbers:
    """The lowest expected test error; to leave, it has to be lower by 1 % of itself.

    Raises:
        UserError: the grid has no test errors.
    """
    if column.error is None:
        raise UserError("adviser 'error' reads the test error, and this grid has none; take 'combined'")
    cost = column.error.copy()
    if column.here is not None:
        cost[:, column.here] -= MATTERS
    return cost


def _learnt(column: Candidates, m: MeasuredGrid) -> tuple[Numbers, float]:
    """(draws, m) log error of the candidates, up to a constant, from measures; and the variance of what that misses.

    Learnt at the other densities of the grid, by ridge regression.
    """
    loads = m.places[:, len(m.knobs) :]
    learnt = m.told & np.isfinite(m.mean("test_error"))
    learnt &= np.abs(loads - column.places[0, len(m.knobs) :]).max(1) > 1e-9
    features, target = [], []
    for each in np.unique(loads[learnt], axis=0):
        cells = learnt & (np.abs(loads - each).max(1) < 1e-9)
        features.append(np.stack([_standard(m.stretch(name).there(m.mean(name)[cells]), name) for name in LEAST], 1))
        errors = m.stretch("test_error").there(m.mean("test_error")[cells])
        target.append(errors - errors.mean())
    if not features:
        return combined(column, m), float("inf")
    X, y = np.concatenate(features), np.concatenate(target)
    weights = np.linalg.solve(X.T @ X + RIDGE * np.eye(len(LEAST)), X.T @ y)
    missed = float(((y - X @ weights) ** 2).sum() / max(len(y) - len(features) - len(LEAST), 1))
    cost: Numbers = weights[0] * _standard(column.lmc, "lmc") + weights[1] * _standard(column.cka, "cka")
    return cost, missed


def _standard(values: Numbers, name: str) -> Numbers:
    """Deviations from the mean over the candidates, in standard deviations; a spread below the least counts as it."""
    spread = np.maximum(values.std(-1, keepdims=True), LEAST[name])
    return (values - values.mean(-1, keepdims=True)) / spread


def _coldest_connected(column: Candidates) -> Numbers:
    return _votes(column, np.where(column.connected, column.heat, FAR - column.heat).argmin(1))


def _next(column: Candidates, way: int) -> int:
    """The next candidate hotter (way = 1) or colder (-1) than here along one knob; here itself at the end."""
    assert column.here is not None
    steps = way * (column.places - column.places[column.here])
    apart = steps.sum(1)
    beyond = np.flatnonzero((np.abs(steps) > 1e-9).sum(1) == 1)
    beyond = beyond[apart[beyond] > 1e-9]
    return int(beyond[apart[beyond].argmin()]) if len(beyond) else column.here


def _votes(column: Candidates, chosen: NDArray[np.intp]) -> Numbers:
    """A cost of 0 for the candidate that a draw chooses, 1 for all others."""
    return (np.arange(len(column.heat)) != chosen[:, None]).astype(float)
