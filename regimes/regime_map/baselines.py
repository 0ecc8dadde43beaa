"""What any advice has to beat: rules that need no landscape at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from regimes.regime_map.measured_grid import MeasuredGrid, Numbers

# A control gives every temperature of a grid a cost (temperatures,), as advisers do; None where it does not apply. The
# second argument holds the dense test errors (temperatures,) of the networks to be chosen from, NaN where not known.
Control = Callable[[MeasuredGrid, Numbers], Numbers | None]


def heat_of(m: MeasuredGrid) -> Numbers:
    """(temperatures,) from cold to hot: the mean coordinate over knobs."""
    count = len(m.knobs)
    grid = m.places.reshape(*m.shape, -1)
    first = (slice(None),) * count + (0,) * (len(m.shape) - count)
    heat: Numbers = grid[first][..., :count].mean(-1).reshape(-1)
    return heat


def coldest(m: MeasuredGrid, dense: Numbers) -> Numbers:
    """Always colder, to the end."""
    return heat_of(m)


def hottest(m: MeasuredGrid, dense: Numbers) -> Numbers:
    """Always hotter, to the end."""
    return -heat_of(m)


def most_trained(m: MeasuredGrid, dense: Numbers) -> Numbers | None:
    """The most epochs; where epochs are the temperature."""
    return None if m.knobs != ["epochs"] else -np.array(m.axes[0].values)


def before_decay(m: MeasuredGrid, dense: Numbers) -> Numbers | None:
    """The last snapshot before the first decay of the learning rate; where epochs are the temperature."""
    decay = m.data["epochs"].attrs.get("first_decay") if m.knobs == ["epochs"] else None
    if decay is None:
        return None
    epochs = np.array(m.axes[0].values)
    return np.where(epochs <= float(decay), -epochs, epochs)


def lowest_dense(m: MeasuredGrid, dense: Numbers) -> Numbers | None:
    """The lowest test error before pruning."""
    return dense if np.isfinite(dense).all() else None


CONTROLS: dict[str, Control] = {
    "coldest": coldest,
    "hottest": hottest,
    "most trained": most_trained,
    "last before the first decay": before_decay,
    "lowest dense test error": lowest_dense,
}
