"""Gains in test error that other settings of a sweep bring: the truth that a diagnosis is learnt from."""

from __future__ import annotations

import numpy as np
import xarray as xr

from regimes.record.grid import hotter_is_larger, knobs_of
from regimes.record.plain_data import SEEDS

WIDER = ("width",)
MORE_DATA = ("data_fraction", "images")


def gains_of(data: xr.Dataset) -> xr.Dataset:
    """Return a dataset with the gains that it lacks, computed from its test errors.

    ``gain_hotter`` is the mean test error of a setting minus the lowest one among hotter values of its knobs at equal
    load, at least 0; ``gain_colder`` likewise. ``gain_wider`` and ``gain_data`` compare larger values along
    ``width`` and ``data_fraction``. At the end of an axis the gain is 0: nothing hotter (colder, ...) was measured.

    Args:
        data: a grid with ``test_error``; without it, or without a knob, nothing is added.
    """
    if "test_error" not in data:
        return data
    error = data["test_error"].mean([dim for dim in data["test_error"].dims if dim in SEEDS])
    knobs = [knob for knob in knobs_of(data) if knob in error.dims]
    hotter = {knob: hotter_is_larger(data, knob) for knob in knobs}
    added = {}
    if knobs:
        added["gain_hotter"] = _largest([_gain(error, knob, up) for knob, up in hotter.items()])
        added["gain_colder"] = _largest([_gain(error, knob, not up) for knob, up in hotter.items()])
    for name, dims in (("gain_wider", WIDER), ("gain_data", MORE_DATA)):
        axes = [dim for dim in dims if dim in error.dims]
        if axes:
            added[name] = _largest([_gain(error, axis, True) for axis in axes])
    return data.assign({name: value for name, value in added.items() if name not in data})


def _gain(error: xr.DataArray, axis: str, up: bool) -> xr.DataArray:
    """Return the error minus the lowest error at larger (or smaller) coordinates along an axis, at least 0."""
    ordered = error.sortby(axis, ascending=up).transpose(..., axis)  # improvement lies towards later entries
    values = ordered.values
    best = np.fmin.accumulate(values[..., ::-1], axis=-1)[..., ::-1]
    later = np.concatenate([best[..., 1:], np.full_like(best[..., :1], np.nan)], axis=-1)
    gain = np.where(np.isnan(values), np.nan, np.fmax(values - later, 0))
    return ordered.copy(data=gain).sortby(axis).transpose(*error.dims)


def _largest(gains: list[xr.DataArray]) -> xr.DataArray:
    largest = gains[0]
    for gain in gains[1:]:
        largest = xr.where(gain > largest, gain, largest)
    return largest
