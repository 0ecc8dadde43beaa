"""Tables of measures, read from pandas or xarray and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from regimes.diagnosis.gains import gains_of
from regimes.diagnosis.measures import GAINS, MEASURES, Array
from regimes.errors import UserError
from regimes.record.plain_data import SEEDS

Table = pd.DataFrame | xr.Dataset


def as_frame(table: Table, *, gains: bool = False) -> pd.DataFrame:
    """Return a table as a data frame of its own; a dataset has one row per setting, seeds and pairs averaged.

    Args:
        table: a data frame is copied without change. Of a dataset, the measures are kept, and the gains; its other
            dimensions become the index.
        gains: whether to compute missing gains of a dataset from its test errors, see `gains_of`.

    Raises:
        UserError: it is neither, or a dataset without any measure.
    """
    if isinstance(table, pd.DataFrame):
        return table.copy()
    if not isinstance(table, xr.Dataset):
        raise UserError(f"table: got {type(table).__name__}; expected a pandas DataFrame or an xarray Dataset")
    if gains:
        table = gains_of(table)
    wanted = [name for name in (*MEASURES, *GAINS) if name in table]
    if not wanted:
        raise UserError(f"table: none of its variables is a measure; known: {', '.join(MEASURES)}")
    for name in wanted:
        _check_numeric(name, table[name].dtype)
    means = {name: table[name].astype(float).mean([dim for dim in table[name].dims if dim in SEEDS]) for name in wanted}
    frame = xr.Dataset({name: value.drop_vars(set(value.coords) - set(value.dims)) for name, value in means.items()})
    return frame.to_dataframe() if frame.sizes else pd.DataFrame({name: [float(frame[name])] for name in wanted})


def read_columns(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, Array]:
    """Return the known columns among ``names`` as float arrays, checked; missing values are NaN.

    Raises:
        UserError: a column is there twice, is not numeric, or has infinite values or values out of its range.
    """
    columns = {}
    for name in names:
        if name not in frame.columns:
            continue
        column = frame[name]
        if isinstance(column, pd.DataFrame):
            raise UserError(f"table: {column.shape[1]} columns are named '{name}'; keep one")
        values = _numbers(name, column)
        infinite = np.isinf(values)
        if infinite.any():
            raise UserError(
                f"table: '{name}' is infinite in {infinite.sum()} of {len(values)} rows; leave missing values NaN"
            )
        if name in MEASURES:
            low, high, hint = MEASURES[name].low, MEASURES[name].high, MEASURES[name].hint
        else:
            low, high, hint = -1, 1, "gains are fractions of test error; divide percentages by 100"
        outside = (values < low - 1e-9) | (values > high + 1e-9)
        if outside.any():
            row = int(np.argmax(outside))
            limits = f"at least {low:g}" if high == np.inf else f"{low:g} to {high:g}"
            raise UserError(f"table: '{name}' is {values[row]:g} in row {row}; allowed: {limits} ({hint})")
        columns[name] = values
    return columns


def _numbers(name: str, column: pd.Series) -> Array:
    if column.dtype == object:
        if any(isinstance(value, (str, bool, np.bool_)) for value in column):
            raise UserError(f"table: '{name}' has values that are not numbers; convert them, or drop the column")
        column = pd.to_numeric(column, errors="coerce")
    _check_numeric(name, column.dtype)
    return column.to_numpy(dtype=float, na_value=np.nan)


def _check_numeric(name: str, dtype: Any) -> None:
    boolean = pd.api.types.is_bool_dtype(dtype)
    if boolean or not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
        raise UserError(f"table: '{name}' has values of type {dtype}; expected numbers")
