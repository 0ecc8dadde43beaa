"""A grid as a matrix for drawing: density to the right, hotter upwards."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import xarray as xr

from regimes.record.grid import hotter_is_larger, knobs_of, loads_of


def table(values: xr.DataArray, data: xr.Dataset) -> pd.DataFrame:
    """Return values over temperatures and loads as a table, the hottest row first, the lowest density on the left.

    With several knobs, rows are their combinations in the order of the grid's dimensions; with several loads, columns
    are grouped by all but the last.
    """
    knobs, loads = knobs_of(data), loads_of(data)
    arranged = values.transpose(*knobs, *loads).sortby(loads)
    for knob in knobs:
        arranged = arranged.sortby(knob, ascending=not hotter_is_larger(data, knob))
    rows = [", ".join(part) for part in _labels(arranged, knobs)]
    marks = [[_mark(name, value) for value in arranged[name].values.tolist()] for name in loads]
    columns = [", ".join(combination) for combination in itertools.product(*marks)]
    return pd.DataFrame(arranged.values.reshape(len(rows), len(columns)), index=rows, columns=columns)


def setting_at(data: xr.Dataset, row: int, column: int) -> dict[str, float]:
    """Return {knob or load: value} of a cell of `table`."""
    knobs, loads = knobs_of(data), loads_of(data)
    sides: list[tuple[list[str], int]] = [(knobs, row), (loads, column)]
    found: dict[str, float] = {}
    for names, index in sides:
        values = [np.sort(data[name].values.astype(float)) for name in names]
        values = [
            each[::-1] if name in knobs and hotter_is_larger(data, name) else each
            for name, each in zip(names, values, strict=True)
        ]
        places = np.unravel_index(index, [len(each) for each in values])
        found |= {name: float(each[at]) for name, each, at in zip(names, values, places, strict=True)}
    return found


def _labels(arranged: xr.DataArray, knobs: list[str]) -> list[tuple[str, ...]]:
    names = [[f"{value:g}" for value in arranged[knob].values] for knob in knobs]
    if len(knobs) > 1:
        names = [[f"{knob} {each}" for each in values] for knob, values in zip(knobs, names, strict=True)]
    return [tuple(names[i][j] for i, j in enumerate(place)) for place in np.ndindex(*map(len, names))]


def _mark(load: str, value: float) -> str:
    return percent(value) if load == "density" else f"{value:g}"


def percent(density: float) -> str:
    """Format a density as a percentage with three significant digits."""
    return f"{100 * density:.3g}"


def axis_titles(data: xr.Dataset) -> tuple[str, str]:
    """Return the titles of the load and of the temperature axis."""
    names = []
    for knob in knobs_of(data):
        about = data[knob].attrs
        units = about.get("units", "1")
        title = about.get("long_name", knob)
        names.append(title if units in ("1", "", "epochs") else f"{title} ({units})")
    loads = ["density (% of prunable weights kept)" if name == "density" else name for name in loads_of(data)]
    return ", ".join(loads), ", ".join(names) + "   (hotter ↑)"


def best_rows(data: xr.Dataset) -> dict[int, int]:
    """Return {column: row of the lowest mean test error}; empty if the grid has no test errors."""
    if "test_error" not in data:
        return {}
    from regimes.regime_map.cell_stats import cell_mean

    errors = table(cell_mean(data["test_error"], knobs_of(data)), data).to_numpy()
    return {
        column: int(np.nanargmin(errors[:, column]))
        for column in range(errors.shape[1])
        if np.isfinite(errors[:, column]).any()
    }


def load_groups(data: xr.Dataset) -> int:
    """Return the number of groups of columns: combinations of all loads but the last."""
    return math.prod(data.sizes[name] for name in loads_of(data)[:-1])
