"""Grids of any origin, checked: run folders, and netCDF files with a knob, a load, connectivity and ``cka``."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import xarray as xr

from regimes.errors import UserError, printable
from regimes.knobs import KNOBS, Knob
from regimes.record.assemble import STATUS, open_record
from regimes.record.hdf5_check import check_hdf5
from regimes.record.plain_data import check_numeric, check_plain
from regimes.registry import lookup

LOADS = ("data_fraction", "width", "density")  # recognised by name; density last, where it is drawn
ERRORS = ("test_error", "val_error", "train_error", "final_test_error")  # also with "dense_" in front


def read_grid(path: str | Path) -> xr.Dataset:
    """Return the grid of a run folder or a netCDF file, checked by `check_grid`.

    Raises:
        UserError: there is no such file or folder, or the grid cannot be used.
    """
    return check_grid(open_grid(path), str(path))


def open_grid(path: str | Path) -> xr.Dataset:
    """Return the data of a run folder or a netCDF file, which need not be a grid.

    Raises:
        UserError: there is no such file or folder, or it cannot be read; see `check_plain`.
    """
    path = Path(path)
    if not path.is_dir():
        return load_netcdf(path)
    data = open_record(path)
    check_plain(data, str(path))
    return data


def load_netcdf(path: Path) -> xr.Dataset:
    """Return the dataset of a netCDF-4 file of any origin. Times are left as numbers.

    Raises:
        UserError: there is no such file, it is not netCDF-4 or damaged, or it is refused by `check_hdf5` or
            `check_plain`.
    """
    try:
        check_hdf5(path)
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as opened:
            loaded = opened.load().drop_encoding()
        data = xr.Dataset(loaded.data_vars, loaded.coords, loaded.attrs)  # opening does not check that sizes agree
    except UserError:
        raise
    except Exception as error:  # HDF5 and xarray raise anything on a damaged file
        reason = printable(next(iter(str(error).splitlines()), type(error).__name__))[:200]
        raise UserError(f"{path}: not a netCDF-4 file, or damaged: {reason}") from error
    check_plain(data, str(path))
    return data


def save_grid(data: xr.Dataset, path: str | Path) -> None:
    """Write a grid to a netCDF file.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        data.to_netcdf(path, engine="h5netcdf")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    except (TypeError, ValueError) as error:  # attributes that netCDF has no type for
        raise UserError(f"{path}: cannot be written as netCDF: {printable(error)}") from error


def knobs_of(data: xr.Dataset) -> list[str]:
    """Return the temperature dimensions of a grid: those named as a knob, or with the attribute ``hotter``."""
    loads = loads_of(data)
    names = [str(dim) for dim in data.sizes if str(dim) in KNOBS or "hotter" in data[str(dim)].attrs]
    return [name for name in names if name not in loads]


def loads_of(data: xr.Dataset | xr.DataArray) -> list[str]:
    """Return the load dimensions of a grid: those named as a load, or with the attribute ``load = true``."""
    named = [str(dim) for dim in data.dims if str(data[dim].attrs.get("load", "")).lower() in ("true", "1")]
    return [*(name for name in named if name not in LOADS), *(name for name in LOADS if name in data.dims)]


def hotter_is_larger(data: xr.Dataset, knob: str) -> bool:
    """Return whether larger values of a knob are hotter, by the attribute ``hotter`` or else the registry."""
    hotter = data[knob].attrs.get("hotter")
    if hotter not in ("larger", "smaller"):
        known: Knob = lookup(KNOBS, knob, "knob")
        hotter = known.hotter
    return hotter == "larger"


def check_grid(data: xr.Dataset, name: str) -> xr.Dataset:
    """Return the grid with missing titles and units filled in; reject implausible grids.

    Args:
        data: the grid.
        name: its name in error messages, and its title if it has none.

    Raises:
        UserError: a dimension or variable is missing, or values are implausible (percentages, a flipped sign).
    """
    check_plain(data, name)
    knobs = knobs_of(data)
    if not knobs:
        if "setting" in data.sizes:
            raise UserError(
                f"{name}: the trials of a search do not form a grid; for a map, run a sweep over one or two knobs"
            )
        have = ", ".join(str(dim) for dim in data.sizes) or "none"
        other = "or a dimension with the attribute 'hotter'"
        raise UserError(f"{name}: no knob among the dimensions ({have}); allowed: {', '.join(KNOBS)}, {other}")
    data = _by_density(data, name)
    if not loads_of(data):
        have = ", ".join(str(dim) for dim in data.sizes if str(dim) not in knobs) or "none besides the knobs"
        other = "or a dimension whose coordinate has the attribute load = true"
        raise UserError(f"{name}: no load among the dimensions ({have}); allowed: {', '.join(LOADS)}, {other}")
    if "lmc" not in data and "curve" in data:
        data = data.assign(lmc=data["curve"])
        data["lmc"].attrs = data["curve"].attrs | {"long_name": "connectivity along a trained curve, in place of LMC"}
    for variable in ("lmc", "cka"):
        if variable not in data:
            why = (
                "all cells diverged; "
                if "status" in data and bool((data["status"] == STATUS.index("diverged")).all())
                else ""
            )
            raise UserError(
                f"{name}: {why}no variable '{variable}'; a grid needs lmc (or curve) and cka over a knob and a load"
            )
        missing = [dim for dim in (*knobs, *loads_of(data)) if dim not in data[variable].dims]
        if missing:
            raise UserError(f"{name}: '{variable}' lacks the dimension {', '.join(missing)}")
    for dim in (*knobs, *loads_of(data)):
        if dim not in data.coords:
            raise UserError(f"{name}: the dimension '{dim}' has no coordinate values")
    data = _as_numbers(data, (*knobs, *loads_of(data)), name)
    _check_numbers(data, name)
    for knob in knobs:
        if knob in KNOBS:
            known: Knob = lookup(KNOBS, knob, "knob")
            defaults = {"units": known.unit, "long_name": known.long_name, "hotter": known.hotter}
            data[knob].attrs = defaults | data[knob].attrs
    if "density" in data.coords:
        data["density"].attrs.setdefault("long_name", "density (fraction of prunable weights kept)")
    data.attrs.setdefault("title", Path(name).stem)
    return data


def _by_density(data: xr.Dataset, name: str) -> xr.Dataset:
    """Convert a grid over ``nu`` to one over density: the mean density of the networks discovered at each nu."""
    if "nu" not in data.sizes or "density" in data.sizes or "kept" not in data:
        return data
    kept = data["kept"].mean([dim for dim in data["kept"].dims if dim != "nu"])
    known = kept["nu"].values[kept.notnull().values]
    if len(known) < data.sizes["nu"]:
        data, kept = data.sel(nu=known), kept.sel(nu=known)
    found = kept.values
    _, first = np.unique(found, return_index=True)
    if len(first) < len(found):
        out = ", ".join(f"{each:g}" for number, each in enumerate(kept["nu"].values) if number not in first)
        warnings.warn(
            f"{name}: networks at nu {out} have the same density as others; dropped from the map", stacklevel=4
        )
        data, found = data.isel(nu=np.sort(first)), found[np.sort(first)]
    data = data.assign_coords(density=("nu", found)).swap_dims(nu="density").sortby("density")
    data["density"].attrs = {"units": "1", "long_name": "density (mean of the networks discovered at one nu)"}
    return data


def _as_numbers(data: xr.Dataset, axes: tuple[str, ...], name: str) -> xr.Dataset:
    """Convert to float; reject values that are not numeric and duplicates on an axis; drop errors without axes."""
    wanted = [
        "lmc",
        "cka",
        *(each for each in ("test_error", "train_error", "hessian_trace", "lmc_stderr", "cka_stderr") if each in data),
    ]
    check_numeric(data, (*wanted, *axes), name)
    for axis in axes:
        values = data[axis].values
        if len(np.unique(values)) != len(values) or not np.isfinite(values).all():
            raise UserError(f"{name}: coordinate '{axis}' has duplicate or non-finite values")
        if data[axis].attrs.get("hotter", "larger") not in ("larger", "smaller"):
            raise UserError(f"{name}: {axis}.hotter = '{data[axis].attrs['hotter']}'; allowed: larger, smaller")
    for each in (str(each) for each in data.data_vars if f"{each}_stderr" in data):
        known, errors = set(data[each].dims), set(data[f"{each}_stderr"].dims)
        if not known & set(axes) <= errors <= known:
            raise UserError(f"{name}: '{each}_stderr' has other dimensions than '{each}'")
    measured = [each for each in ("test_error", "train_error") if each in data]
    data = data.drop_vars([each for each in measured if not set(axes) <= set(data[each].dims)])
    return data.assign({each: data[each].astype(float) for each in wanted if each in data})


def _check_numbers(data: xr.Dataset, name: str) -> None:
    density = data["density"].values if "density" in data.sizes else np.ones(1)
    if np.any(~np.isfinite(density)) or np.any(density <= 0):
        raise UserError(f"{name}: density {np.nanmin(density):g}; allowed: (0, 1]")
    if np.any(density > 1):
        raise UserError(f"{name}: density up to {density.max():g}; allowed: (0, 1]; divide percentages by 100")
    cka, lmc = data["cka"].values, data["lmc"].values
    if not bool((data["lmc"].notnull() & data["cka"].notnull()).any()):
        raise UserError(f"{name}: no cell has both lmc and cka; nothing to classify")
    _check_errors(data, name)
    if np.nanmin(cka) < -0.2 or np.nanmax(cka) > 1.001:
        raise UserError(
            f"{name}: cka from {np.nanmin(cka):g} to {np.nanmax(cka):g}; allowed: -0.2 to 1.001 (1 = identical)"
        )
    if data["lmc"].attrs.get("units", "1") != "1":  # a loss is not bounded
        return
    if np.nanmax(np.abs(lmc)) > 1:
        raise UserError(
            f"{name}: lmc from {np.nanmin(lmc):g} to {np.nanmax(lmc):g}; allowed: -1 to 1; divide percentages by 100"
        )
    own = data.attrs.get("source") == "regimes"  # whose sign is known
    if not own and np.nanmax(lmc) > 0.1 and np.nanmax(lmc) > 3 * abs(min(0.0, float(np.nanmin(lmc)))):
        raise UserError(
            f"{name}: lmc is mostly positive (up to {np.nanmax(lmc):g}); flip its sign? lmc = (E(0)+E(1))/2 - E(t*), "
            "negative at a barrier"
        )


def _check_errors(data: xr.Dataset, name: str) -> None:
    """Reject errors that are no fractions, or not finite."""
    for variable in (*ERRORS, *(f"dense_{error}" for error in ERRORS)):
        if variable not in data or not np.issubdtype(data[variable].dtype, np.number):
            continue
        values = data[variable].values
        known = values[~np.isnan(values)]
        if not len(known):
            continue
        low, high = float(known.min()), float(known.max())
        if np.isinf(known).any():
            raise UserError(f"{name}: {variable} has infinite values; mark cells without a value as NaN")
        if data[variable].attrs.get("units", "1") == "1" and not (low >= 0 and high <= 1):
            hint = "; divide percentages by 100" if low >= 0 else ""
            raise UserError(f"{name}: {variable} from {low:g} to {high:g}; an error is a fraction, 0 to 1{hint}")
