"""Export of a record: netCDF, or CSV with one row per value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from regimes.errors import UserError
from regimes.record.grid import save_grid
from regimes.record.plain_data import SEEDS

FORMATS = ("nc", "csv")
OWN_COLUMNS = ("value", "stderr", "units", "status")  # after the coordinates


def export(data: xr.Dataset, path: str | Path, form: str) -> None:
    """Write a record to a file.

    Args:
        data: a record, as returned by `open_record`.
        path: the file to write.
        form: "nc", or "csv" for the rows of `table`.

    Raises:
        UserError: the form is unknown, the file cannot be written, or a dimension is named as a column of `table`.
    """
    if form not in FORMATS:
        raise UserError(f"--to {form}: allowed: {', '.join(FORMATS)}")
    if form == "nc":
        save_grid(data, path)
        return
    rows = table(data).map(_no_formula).rename(columns=_no_formula)
    try:
        rows.to_csv(path, index=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def table(data: xr.Dataset) -> pd.DataFrame:
    """Return a record in long form, one row per measured value.

    Columns: ``variable``, the coordinates, ``value``, ``stderr``, ``units``, and the ``status`` of the cell.
    Coordinates that a variable does not have (a pair has no retrain seed) are empty; missing values have no row.

    Raises:
        UserError: a dimension has the name of another column.
    """
    dims = [str(each) for each in data.sizes]
    if taken := set(dims) & {"variable", *OWN_COLUMNS}:
        raise UserError(f"dimension '{min(taken)}' has the name of a column of the table; rename it")
    data = data.reset_coords(drop=True)
    status = _names_of_status(data)
    parts = []
    for name in map(str, data.data_vars):
        if name == "status" or name.endswith("_stderr") or not data[name].dims:
            continue
        variable = data[name]
        frame = variable.to_dataframe(name="value").reset_index()
        frame["stderr"] = _beside(data, f"{name}_stderr", variable)
        frame["units"] = variable.attrs.get("units", "")
        frame.insert(0, "variable", name)
        if status is not None and set(status.dims) <= set(variable.dims):
            frame["status"] = status.broadcast_like(variable).transpose(*variable.dims).values.ravel()
        parts.append(frame[frame["value"].notna()])
    columns = ["variable", *dims, *OWN_COLUMNS]
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    whole = whole.reindex(columns=columns)
    for name in SEEDS:  # integers or missing
        if name in whole:
            whole[name] = whole[name].astype("Int64")
    return whole


def _no_formula(cell: Any) -> Any:
    """Return a cell of a CSV file; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _beside(data: xr.Dataset, name: str, variable: xr.DataArray) -> pd.Series | float:
    if name not in data or set(data[name].dims) != set(variable.dims):
        return float("nan")
    values: pd.Series = data[name].transpose(*variable.dims).to_dataframe(name="stderr").reset_index()["stderr"]
    return values


def _names_of_status(data: xr.Dataset) -> xr.DataArray | None:
    if "status" not in data or "flag_meanings" not in data["status"].attrs:
        return None
    names = data["status"].attrs["flag_meanings"].split()
    status = data["status"]
    return status.copy(data=np.array(names, dtype=object)[status.values.astype(int)])
