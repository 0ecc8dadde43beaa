"""The border between II-A and II-B: the temperature from which colder training no longer improves.

A column of the grid holds the temperatures of one knob at one load. In every posterior draw, the peak of a column is
its best temperature: the highest similarity and, if test errors are known, also the lowest error, each standardised
over the column. Where regime I lies close to the cold side of a peak, it may only be the last temperature before the
cliff; such columns are not used unless all are like this. The border is fitted to the peaks of the others: a line
along the loads, with a prior for one common temperature, since in the three-regime study it is nearly that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

DRAWS = 200
PEAK_SPREAD = 0.08  # of a column's peak around the line, in axis lengths, beside its posterior
MIN_DISTANCE = 0.2  # of a peak from the cliff on its cold side, in axis lengths
SLOPE_SPREAD = 0.3  # prior standard deviation of the line's slope
# Gain from the hottest temperature to the line at which an improvement has probability one half, and its tolerance.
MIN_GAIN = {"cka": (0.08, 0.02), "test_error": (0.05, 0.01)}  # in log10(1 - CKA), in log error
MIN_SPREAD = {"cka": 0.05, "test_error": 0.03}  # smallest standard deviation to standardise by
SLACK = 0.5  # of a step: the temperature nearest to the line counts as on it
ROBUST_STEPS, ROBUST_DEGREES = 8, 4.0  # of the iteratively reweighted fit, as for a Student distribution


def colder_improves(m: MeasuredGrid, poorly: Numbers) -> tuple[Numbers, str]:
    """Return the probability (n,) of each cell that a colder temperature improves, and how it was found.

    Args:
        m: the grid.
        poorly: (n,) probability of regime I.
    """
    names = [name for name in MIN_GAIN if name == "cka" or m.has_test_error]
    drawn = {name: _better(name) * m.drawn(name, DRAWS) for name in names}
    stays, notes = np.ones(len(m.places)), []
    for number, axis in enumerate(m.knob_axes):
        if len(axis.values) > 1:
            colder, note = _along(m, number, drawn, poorly)
            stays *= 1 - colder
            notes.append(note)
    measures = "similarity" if len(names) == 1 else "similarity and test error"
    return 1 - stays, f"II-A, by {measures}: " + ", ".join(notes or ["not seen, one temperature"])


def _better(name: str) -> int:
    return 1 if name == "cka" else -1


def _along(m: MeasuredGrid, number: int, drawn: dict[str, Numbers], poorly: Numbers) -> tuple[Numbers, str]:
    """Probabilities (n,) that colder improves along one knob, and where from."""
    axis, columns = m.axes[number], _Columns(m, number)
    heat = np.linspace(1.0, 0.0, len(axis.values))
    beyond = columns.of(poorly) >= 0.5  # (columns, temperatures)
    score = np.sum([_standardised(columns.of(values), name) for name, values in drawn.items()], axis=0)
    score = np.where(beyond, -np.inf, score)
    peaks = heat[score.argmax(-1)]  # (draws, columns)
    connected = ~beyond.all(-1)
    if not connected.any():
        return np.zeros(len(m.places)), f"no connected cell along {axis.name}"
    cliff = np.where(beyond[:, 1:] & ~beyond[:, :-1], heat[:-1], -np.inf).max(-1)  # last cell before I, per column
    apart = connected & (np.median(peaks, axis=0) - cliff > MIN_DISTANCE)
    used = np.asarray(apart if apart.any() else connected)
    line = _lines(columns.loads, peaks, used)
    stays = [1 - _gain(columns.of(values), heat, line, used, MIN_GAIN[name]) for name, values in drawn.items()]
    exists = 1 - float(np.prod(stays))
    hotter = (heat > line[..., None] + SLACK / (len(heat) - 1)).mean(0) * exists
    middle = float(axis.value(np.clip(np.median(line[:, used], keepdims=True), 0, 1)).item())
    note = f"hotter than the peak at about {axis.name} {middle:.3g}" if exists >= 0.5 else f"not seen along {axis.name}"
    return columns.back(hotter), note


class _Columns:
    """View of a grid's cells as columns: the temperatures of one knob, from hot to cold, at each other setting.

    Attributes:
        loads: (columns, loads) load coordinates.
    """

    def __init__(self, m: MeasuredGrid, number: int) -> None:
        self.shape, self.number, self.descending = m.shape, number, m.axes[number].sign > 0
        self.loads = np.stack([self.of(coordinate)[:, 0] for coordinate in m.load_coordinates(m.places).T], -1)

    def of(self, values: Numbers) -> Numbers:
        """Return values of cells (..., n) as (..., columns, temperatures)."""
        lead = values.shape[:-1]
        moved = np.moveaxis(values.reshape(*lead, *self.shape), len(lead) + self.number, -1)
        moved = moved[..., ::-1] if self.descending else moved
        return moved.reshape(*lead, -1, self.shape[self.number])

    def back(self, values: Numbers) -> Numbers:
        """Return values (columns, temperatures) as cells (n,)."""
        rest = [size for axis, size in enumerate(self.shape) if axis != self.number]
        ordered = (values[:, ::-1] if self.descending else values).reshape(*rest, self.shape[self.number])
        return np.moveaxis(ordered, -1, self.number).reshape(-1)


def _standardised(values: Numbers, name: str) -> Numbers:
    """Draws (draws, columns, temperatures) relative to the mean and spread of their column's posterior mean."""
    middle = values.mean(0)
    spread = np.maximum(middle.std(-1, keepdims=True), MIN_SPREAD[name])
    standardised: Numbers = (values - middle.mean(-1, keepdims=True)) / spread
    return standardised


def _lines(load: Numbers, peaks: Numbers, used: NDArray[np.bool_]) -> Numbers:
    """Border (draws, columns): weighted ridge regression of each draw's peaks on the load, with robust weights.

    Args:
        load: (columns, loads) coordinates.
        peaks: (draws, columns) temperature of the peaks.
        used: (columns,) whether a column has a peak.
    """
    X = np.column_stack([np.ones(len(load)), load - 0.5])
    precision = np.diag([1e-6, *[SLOPE_SPREAD**-2] * load.shape[1]])
    variance = peaks.var(0) + PEAK_SPREAD**2
    middle, weights = peaks.mean(0), np.where(used, 1 / variance, 0.0)
    for _ in range(ROBUST_STEPS):
        solve = np.linalg.solve(X.T @ (weights[:, None] * X) + precision, X.T * weights)
        astray = (middle - X @ (solve @ middle)) ** 2 / variance
        weights = np.where(used, 1 / variance / (1 + astray / ROBUST_DEGREES), 0.0)
    return np.asarray(peaks @ solve.T @ X.T)


def _gain(values: Numbers, heat: Numbers, line: Numbers, used: NDArray[np.bool_], limit: tuple[float, float]) -> float:
    """Probability that the values (draws, columns, temperatures) improve from the hottest temperature to the line."""
    nearest = np.abs(heat - np.median(line, axis=0)[:, None]).argmin(-1)  # (columns,)
    best = np.take_along_axis(values, nearest[None, :, None], -1)[..., 0]
    colder = used & (nearest > 0)
    if not colder.any():
        return 0.0
    gain = np.median((best - values[..., 0])[:, colder], axis=1)
    return float(expit((gain - limit[0]) / limit[1]).mean())
