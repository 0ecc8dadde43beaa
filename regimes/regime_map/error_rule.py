"""The rule "error": regimes by the direction of the temperature that lowers the pruned networks' test error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from regimes.errors import UserError
from regimes.regime_map.classification import Classification
from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

POSTERIOR_DRAWS = 400
MEANING = {
    "I": "a hotter training lowers the test error",
    "II-A": "a colder training lowers the test error",
    "II-B": "neither lowers the test error",
}
MIN_RELATIVE_CHANGE = 0.05  # of the test error over one step; smaller changes do not count


def by_error(m: MeasuredGrid, given: Mapping[str, float]) -> Classification:
    """Classify cells by the step that lowers the test error: hotter (I), colder (II-A), neither (II-B).

    In each posterior draw of the log error, a cell is compared with its next hotter and next colder neighbour along
    every knob; relative changes of less than 5 % do not count.

    Raises:
        UserError: the grid has no test errors, or a cut is given (this rule has none).
    """
    if not m.has_test_error:
        raise UserError("rule 'error' needs test errors, and this grid has none; use rule 'transition'")
    if given:
        raise UserError(f"rule 'error' has no cut for {' or '.join(given)}; remove it, or use rule 'transition'")
    drawn = m.surface("test_error").sample(m.places, POSTERIOR_DRAWS, np.random.default_rng(0))
    hotter, colder = (_change(m, drawn, step) for step in (1, -1))
    hotter_better = (hotter < -MIN_RELATIVE_CHANGE) & (hotter <= colder)
    colder_better = (colder < -MIN_RELATIVE_CHANGE) & (colder < hotter)
    moves = np.where(hotter_better, 0, np.where(colder_better, 1, 2))
    probability = np.stack([(moves == number).mean(0) for number in range(3)], -1)
    note = f"sign of the change of the test error over one temperature step, beyond {MIN_RELATIVE_CHANGE:.0%}"
    return Classification(probability, None, [note], MEANING)


def _change(m: MeasuredGrid, drawn: Numbers, step: int) -> Numbers:
    """Change (draws, n) of the log error at the next hotter (colder) cell, the lowest over knobs; inf at the edge."""
    grid = drawn.reshape(len(drawn), *m.shape)
    best: NDArray[np.float64] = np.full_like(grid, np.inf)
    for number, axis in enumerate(m.knob_axes, start=1):
        up = step * axis.sign  # +1: towards larger values
        change = np.full_like(grid, np.inf)
        front: list[slice] = [slice(None)] * grid.ndim
        back = list(front)
        front[number], back[number] = (slice(None, -1), slice(1, None)) if up > 0 else (slice(1, None), slice(None, -1))
        change[tuple(front)] = grid[tuple(back)] - grid[tuple(front)]
        best = np.minimum(best, change)
    return best.reshape(drawn.shape)
