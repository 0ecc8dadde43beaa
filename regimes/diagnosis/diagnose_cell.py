"""Diagnosis of a cell of a record: the networks of one setting and density, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import xarray as xr

from regimes.diagnosis.diagnosis import Diagnosis
from regimes.diagnosis.measures import MEASURES
from regimes.diagnosis.network_diagnosis import NetworkDiagnosis, diagnose_values
from regimes.errors import OutsideRange, UserError
from regimes.record.grid import knobs_of, loads_of
from regimes.record.plain_data import SEEDS, check_numeric

MIDDLE = (0.2, 0.8)  # positions on a curve that count as its middle, where the reference has 0.25, 0.5, 0.75
NOT_MIXED = "CKA of a record is measured on training images, the reference's on mixed images: not used"
SEVERAL_PREDICTIONS = (
    "several predictions per input (tokens, pixels): the packaged reference has image classifiers only, whose training "
    "errors reach 0, so such networks are unfamiliar whatever the measures say"
)
PRUNED = "the networks of this cell are pruned; the packaged reference has dense networks only"


def diagnose_cell(
    data: xr.Dataset, density: float, at: Mapping[str, float], diagnosis: Diagnosis | None = None
) -> NetworkDiagnosis:
    """Return the diagnosis of the networks at one measured setting and density.

    Measures are averaged over seeds and pairs. ``curve_peak`` is taken from the error along a trained curve, if the
    record has one. With the default diagnosis CKA is left out, because records have it on training images.

    Args:
        data: a record, see `regimes.open`.
        density: measured density.
        at: {knob: measured value}, and the width if it varies; not needed for knobs with a single value.
        diagnosis: a learnt diagnosis; None: the default.

    Raises:
        UserError: a value that was not measured, or a cell without measures.
        OutsideRange: a value beyond the measured ones.
    """
    cell = data
    axes = [*knobs_of(data), *loads_of(data)]
    measured = [name for name in (*MEASURES, "curve_error") if name in data]
    check_numeric(data, [*axes, *measured], str(data.attrs.get("title", "grid")))
    for name in at:
        if name not in axes:
            raise UserError(f"'{name}' is no axis of this record; allowed: {', '.join(axes)}")
    for axis in axes:
        wanted = density if axis == "density" else at.get(axis)
        cell = cell.isel({axis: _position(data, axis, wanted)})
    values, stderrs = {}, {}
    for name in MEASURES:
        if name in cell:
            values[name], stderrs[name] = _mean(cell[name], cell.get(f"{name}_stderr"))
    if "curve_error" in cell and "t" in cell.dims:
        middle = cell["curve_error"].where((cell["t"] >= MIDDLE[0]) & (cell["t"] <= MIDDLE[1]), drop=True)
        values["curve_peak"], stderrs["curve_peak"] = _mean(-middle.max("t"), None)
    notes = [PRUNED] if density < 1 else []
    if int(data.attrs.get("predictions_per_input", 1)) > 1 and diagnosis is None:
        notes.append(SEVERAL_PREDICTIONS)
    if diagnosis is None and "cka" in values:
        del values["cka"]
        notes.insert(0, NOT_MIXED)
    if not any(math.isfinite(value) for value in values.values()):
        measures = ", ".join(name for name in MEASURES if name != "cka" or diagnosis is not None)
        raise UserError(f"this cell has no measure that a diagnosis uses; add some of these to the sweep: {measures}")
    return diagnose_values(diagnosis or Diagnosis.default(), values, stderrs, notes)


def _position(data: xr.Dataset, axis: str, wanted: float | None) -> int:
    """Return the index of a measured value on an axis."""
    measured = data[axis].values.astype(float)
    shown = ", ".join(f"{value:g}" for value in measured)
    if wanted is None:
        if len(measured) == 1:
            return 0
        raise UserError(f"missing value for {axis}; pass --at {axis}=VALUE; measured: {shown}")
    near = np.flatnonzero(np.isclose(measured, wanted, rtol=1e-6, atol=0))
    if len(near):
        return int(near[0])
    kind = UserError if measured.min() <= wanted <= measured.max() else OutsideRange
    raise kind(f"{axis} = {wanted:g} was not measured; measured: {shown}")


def _mean(values: xr.DataArray, stderrs: xr.DataArray | None) -> tuple[float, float]:
    """Return the mean over seeds and pairs with its standard error."""
    array = values.mean([dim for dim in values.dims if dim not in SEEDS]).values.astype(float).ravel()
    known = array[np.isfinite(array)]
    if not len(known):
        return math.nan, math.nan
    if len(known) > 1:
        return float(known.mean()), float(known.std(ddof=1) / len(known) ** 0.5)
    return float(known[0]), math.nan if stderrs is None else float(np.nanmean(stderrs.values.astype(float)))
