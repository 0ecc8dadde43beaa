"""Baselines for advice: ways to choose a temperature without the loss landscape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

# A baseline returns a cost (temperatures,) for every temperature of a grid, or None if it does not apply. The second
# argument holds the dense test errors (temperatures,) of the networks to choose from, NaN if unknown.
Baseline = Callable[[MeasuredGrid, Numbers], Numbers | None]


def temperature_of(m: MeasuredGrid) -> Numbers:
    """Return the temperature coordinate (temperatures,) of every setting: the mean over knobs, 0 coldest, 1 hottest."""
    count = len(m.knobs)
    grid = m.places.reshape(*m.shape, -1)
    first = (slice(None),) * count + (0,) * (len(m.shape) - count)
    temperature: Numbers = grid[first][..., :count].mean(-1).reshape(-1)
    return temperature


def coldest(m: MeasuredGrid, dense: Numbers) -> Numbers:
    """Choose the coldest temperature."""
    return temperature_of(m)


def hottest(m: MeasuredGrid, dense: Numbers) -> Numbers:
    """Choose the hottest temperature."""
    return -temperature_of(m)


def most_trained(m: MeasuredGrid, dense: Numbers) -> Numbers | None:
    """Choose the most epochs, if epochs are the only knob."""
    return None if m.knobs != ["epochs"] else -np.array(m.axes[0].values)


def before_decay(m: MeasuredGrid, dense: Numbers) -> Numbers | None:
    """Choose the last snapshot before the first learning rate decay, if epochs are the only knob."""
    decay = m.data["epochs"].attrs.get("first_decay") if m.knobs == ["epochs"] else None
    if decay is None:
        return None
    epochs = np.array(m.axes[0].values)
    return np.where(epochs <= float(decay), -epochs, epochs)


def lowest_dense(m: MeasuredGrid, dense: Numbers) -> Numbers | None:
    """Choose the lowest test error before pruning, if known at every temperature."""
    return dense if np.isfinite(dense).all() else None


BASELINES: dict[str, Baseline] = {
    "coldest": coldest,
    "hottest": hottest,
    "most trained": most_trained,
    "last before the first decay": before_decay,
    "lowest dense test error": lowest_dense,
}
