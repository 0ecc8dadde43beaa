"""The operational rule: which way the temperature should turn, read off the pruned networks' test error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from regimes.errors import UserError
from regimes.regime_map.landscape_rules import Classification
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

DRAWS = 400
MEANING = {
    "I": "a hotter training lowers the test error",
    "II-A": "a colder training lowers the test error",
    "II-B": "neither lowers the test error",
}
MATTERS = 0.05  # of the error: what a step changes by less is no reason to turn a knob


def by_error(m: MeasuredGrid, given: Mapping[str, float]) -> Classification:
    """Regimes by the move that lowers the expected test error: hotter (I), colder (II-A), neither (II-B).

    On surfaces drawn from the posterior of log error, each cell is held against its next hotter and colder one along
    every knob; a step that changes the error by less than 5 % of itself does not count.

    Raises:
        UserError: the grid has no test errors, or a cut is given, which this rule does not have.
    """
    if not m.knows_error:
        raise UserError("rule 'error' reads the test error, and this grid has none; take rule 'smooth'")
    if given:
        raise UserError(f"rule 'error' has no cut for {' or '.join(given)}; leave it out, or take rule 'smooth'")
    drawn = m.surface("test_error").draws(m.places, DRAWS, np.random.default_rng(0))
    hotter, colder = (_change(m, drawn, step) for step in (1, -1))
    moves = np.where(
        (hotter < -MATTERS) & (hotter <= colder), 0, np.where((colder < -MATTERS) & (colder < hotter), 1, 2)
    )
    probability = np.stack([(moves == number).mean(0) for number in range(3)], -1)
    note = f"by the sign of the expected change of test error over one step along the temperature, beyond {MATTERS:.0%}"
    return Classification(probability, None, [note], meaning=MEANING)


def _change(m: MeasuredGrid, drawn: Numbers, step: int) -> Numbers:
    """(draws, n) change of log error at the next hotter (colder) cell, the best over knobs; inf at the edge."""
    grid = drawn.reshape(len(drawn), *m.shape)
    best: NDArray[np.float64] = np.full_like(grid, np.inf)
    for number, axis in enumerate(m.axes[: len(m.knobs)], start=1):
        up = step * axis.sign  # towards larger values, or smaller
        there = np.full_like(grid, np.inf)
        front: list[slice] = [slice(None)] * grid.ndim
        back = list(front)
        front[number], back[number] = (slice(None, -1), slice(1, None)) if up > 0 else (slice(1, None), slice(None, -1))
        there[tuple(front)] = grid[tuple(back)] - grid[tuple(front)]
        best = np.minimum(best, there)
    return best.reshape(drawn.shape)
