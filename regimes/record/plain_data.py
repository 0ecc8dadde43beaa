"""Check of the names, types and attributes of a grid, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from regimes.errors import UserError, printable

MAX_LABEL = 500  # characters
MAX_VALUE = 1e30  # below the value 9.97e36 that netCDF fills arrays with
LABELS = ("title", "units", "long_name", "hotter", "rule", "meaning_I", "meaning_II-A", "meaning_II-B")
TEXTS = ("source", "flag_meanings", "thresholds")
NUMBERS = ("chance_error", "predictions_per_input", "given_lmc", "given_cka", "first_decay")
MEASURED, ENDINGS = ("lmc", "cka", "curve", "kept", "t"), ("_error", "_stderr")  # names of variables of numbers
SEEDS = ("dense_seed", "retrain_seed", "pair")


def check_plain(data: xr.Dataset, name: str) -> None:
    """Refuse a grid with names, types or attributes that this package cannot show, compute with or write.

    Names and labels (title, units, long names) are text without control characters, of at most 500 characters; values
    are real numbers up to 1e30, NaN, infinity, booleans or text; attributes that are read as numbers are finite
    numbers; seeds are distinct integers; no dimension is empty.

    Args:
        data: the grid.
        name: its name in error messages.

    Raises:
        UserError: the first of these that does not hold.
    """
    for each in (*data.variables, *data.dims):
        if not isinstance(each, str) or not is_label(each) or "/" in each or "\\" in each:
            raise UserError(
                f"{name}: {printable(each)!r} is no name of a variable; allowed: printable characters but / and \\, "
                f"{MAX_LABEL} at most; rename it"
            )
    for dim, size in data.sizes.items():
        if not size:
            raise UserError(f"{name}: the dimension '{dim}' is empty")
    _check_attributes(data.attrs, f"{name}: ")
    for each, variable in data.variables.items():
        _check_attributes(variable.attrs, f"{name}: {each}.")
        text = variable.dtype.kind in "OT" and all(isinstance(value, str) for value in variable.values.flat)
        if variable.dtype.kind not in "biufUS" and not text:
            raise UserError(f"{name}: '{each}' has values of type {variable.dtype}; allowed: real numbers, text")
        if variable.dtype.kind == "f" and bool(((abs(variable) > MAX_VALUE) & (abs(variable) < np.inf)).any()):
            raise UserError(f"{name}: '{each}' has values beyond {MAX_VALUE:g}; mark cells without a value as NaN")
    check_numeric(data, [each for each in data.variables if each in MEASURED or str(each).endswith(ENDINGS)], name)
    for seed in SEEDS:
        if seed in data.indexes and not _are_seeds(data[seed].values):
            raise UserError(f"{name}: coordinate '{seed}' has values that are no distinct integers")
    if "status" in data and "flag_meanings" in data["status"].attrs:
        _check_status(data["status"], name)


def check_numeric(data: xr.Dataset, names: Iterable[Any], name: str) -> None:
    """Refuse variables of a grid whose values are no real numbers.

    Raises:
        UserError: a variable has values of another type.
    """
    for each in names:
        if data[each].dtype.kind not in "iuf":
            raise UserError(f"{name}: '{each}' has values of type {data[each].dtype}; expected numbers")


def is_label(text: str) -> bool:
    """Return whether a text is printable and short enough to be shown in figures and tables."""
    return 0 < len(text) <= MAX_LABEL and text == printable(text)


def _check_attributes(attributes: Mapping[Any, Any], where: str) -> None:
    for key, value in attributes.items():
        if not is_label(str(key)):
            raise UserError(f"{where[:-1]} an attribute's name is not printable, or longer than {MAX_LABEL} characters")
        if key in LABELS and not (isinstance(value, str) and (value == "" or is_label(value))):
            raise UserError(f"{where}{key} = {_short(value)}; allowed: printable text, {MAX_LABEL} characters at most")
        if key in TEXTS and not (isinstance(value, str) and value == printable(value)):
            raise UserError(f"{where}{key} = {_short(value)}; allowed: printable text")
        if key in NUMBERS and not (
            np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf" and np.isfinite(value)
        ):
            raise UserError(f"{where}{key} = {_short(value)}; allowed: a finite number")


def _short(value: object) -> str:
    """Return a value for an error message: its type if it is no text, else its first characters."""
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return f"{printable(value[:40])!r}" + ("..." if len(value) > 40 else "")


def _are_seeds(values: np.ndarray) -> bool:
    """Whether values are distinct 64-bit integers."""
    whole = np.issubdtype(values.dtype, np.integer) and bool((values.astype(np.int64) == values).all())
    return whole and len(np.unique(values)) == len(values)


def _check_status(status: xr.DataArray, name: str) -> None:
    count = len(status.attrs["flag_meanings"].split())
    if not (np.issubdtype(status.dtype, np.integer) and bool(((status >= 0) & (status < count)).all())):
        raise UserError(f"{name}: 'status' has values without a flag_meaning; allowed: integers from 0 to {count - 1}")
