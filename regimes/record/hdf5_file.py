"""Check of an HDF5 file before it is read: plain arrays, stored in the file itself, of a size that fits into memory."""

from __future__ import annotations

import math
from pathlib import Path

import h5py

from regimes.errors import UserError

MAX_BYTES = 2**28  # of all arrays together, uncompressed
NETCDF3 = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
# Written by the netCDF and HDF5 libraries themselves; references and compounds are allowed in these only.
INTERNAL_ATTRS = ("DIMENSION_LIST", "REFERENCE_LIST")


def check_hdf5(path: Path) -> None:
    """Refuse a file that is not HDF5, or not a plain one.

    A plain file holds arrays of numbers and text in its root group. Links other than hard ones, external storage and
    virtual arrays, which read other files, are refused without being followed; so are groups, other types (complex,
    compound, enumeration, reference, ...), and arrays of more than 256 MB in all.

    Raises:
        UserError: the file is refused.
        Exception: any error of HDF5 on a damaged file.
    """
    if not path.is_file():
        raise UserError(f"{path}: not a regular file; expected a run folder or a netCDF grid")
    with path.open("rb") as stream:
        if stream.read(4) in NETCDF3:
            raise UserError(f"{path}: netCDF-3; convert it to netCDF-4: nccopy -k nc4 {path.name} NEW.nc")
    with h5py.File(path, "r") as file:
        _check_attributes(file, f"{path}: ")
        total = 0
        for name in file:
            where = f"{path}: {name!r}"
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"{where} is a link to another place or file; store the array itself")
            array = file[name]
            if not isinstance(array, h5py.Dataset):
                raise UserError(f"{where} is a {type(array).__name__.lower()}; allowed: arrays in the root group only")
            total += _size_of_plain(array, where)
        if total > MAX_BYTES:
            raise UserError(
                f"{path}: arrays of {total / 1e6:,.0f} MB in all; allowed: {MAX_BYTES / 1e6:,.0f} MB; select a part"
            )


def _size_of_plain(array: h5py.Dataset, where: str) -> int:
    """Return the bytes needed to read an array; refuse one that is stored elsewhere or not of numbers or text."""
    layout = array.id.get_create_plist()
    if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
        raise UserError(f"{where} is stored in another file; store the array itself")
    if array.shape is None or not _is_plain(array.id.get_type()):
        raise UserError(f"{where} has values of type {array.dtype}; allowed: real numbers, text")
    if not array.is_scale and not all(map(len, array.dims)):
        raise UserError(f"{where} has dimensions without a name; write the file with a netCDF library")
    _check_attributes(array, f"{where}: ")
    return max(math.prod(array.shape), math.prod(array.chunks or ())) * array.dtype.itemsize


def _check_attributes(owner: h5py.HLObject, where: str) -> None:
    for name in owner.attrs:
        if name not in INTERNAL_ATTRS and not _is_plain(owner.attrs.get_id(name).get_type()):
            raise UserError(f"{where}the attribute {name!r} is neither text nor numbers")


def _is_plain(kind: h5py.h5t.TypeID) -> bool:
    """Whether an HDF5 type is of real numbers, booleans or text."""
    dtype = kind.dtype
    return h5py.check_string_dtype(dtype) is not None or (dtype.kind in "biuf" and h5py.check_enum_dtype(dtype) is None)
