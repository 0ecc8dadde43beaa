"""Script that reads an HDF5 file as a trial and prints in one line why it is refused, or nothing.

It runs in a process of its own (see `regimes.record.hdf5_check`), with limits on its processor time and memory, because
the HDF5 library itself crashes or loops on some damaged files. It imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import math
import sys

import h5py

MAX_BYTES = 2**28  # of all arrays together, uncompressed
MAX_MEMORY = 2**32
MAX_SECONDS = 20  # of processor time


class Refused(Exception):
    """The file is not plain; the message says what and where."""


def probe(path: str) -> None:
    """Read all of a file once it is known to be plain.

    A plain file holds arrays of numbers and text in its root group. Links other than hard ones, external storage and
    virtual arrays, which read other files, are refused without being followed; so are groups, other types (complex,
    compound, enumeration, reference, ...), and arrays of more than 256 MB in all.

    Raises:
        Refused: the file is not plain.
        Exception: any error of HDF5 on a damaged file.
    """
    with h5py.File(path, "r") as file:
        _check_attributes(file, "")
        total = 0
        for name in file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise Refused(f"{name!r} is a link to another place or file; store the array itself")
            array = file[name]
            if not isinstance(array, h5py.Dataset):
                raise Refused(f"{name!r} is a {type(array).__name__.lower()}; allowed: arrays in the root group only")
            total += _size_of_plain(array, repr(name))
        if total > MAX_BYTES:
            raise Refused(f"arrays of {total / 1e6:,.0f} MB in all; allowed: {MAX_BYTES / 1e6:,.0f} MB; select a part")
        for array in file.values():
            array[...]
            for scales in array.attrs.get("DIMENSION_LIST", ()):
                [file[scale].shape for scale in scales]
            dict(array.attrs)


def _size_of_plain(array: h5py.Dataset, where: str) -> int:
    """Return the bytes needed to read an array; refuse one that is stored elsewhere or not of numbers or text."""
    layout = array.id.get_create_plist()
    if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
        raise Refused(f"{where} is stored in another file; store the array itself")
    if array.shape is None or not _is_plain(array.id.get_type()):
        raise Refused(f"{where} has values of type {array.dtype}; allowed: real numbers, text")
    if array.shape and "DIMENSION_LIST" not in array.attrs and array.attrs.get("CLASS") != b"DIMENSION_SCALE":
        raise Refused(f"{where} has dimensions without a name; write the file with a netCDF library")
    _check_attributes(array, f"{where}: ")
    return max(math.prod(array.shape), math.prod(array.chunks or ())) * array.dtype.itemsize


def _check_attributes(owner: h5py.HLObject, where: str) -> None:
    for name in owner.attrs:
        internal = name in ("DIMENSION_LIST", "REFERENCE_LIST")  # of references, written by the netCDF library
        if not internal and not _is_plain(owner.attrs.get_id(name).get_type()):
            raise Refused(f"{where}the attribute {name!r} is neither text nor numbers")


def _is_plain(kind: h5py.h5t.TypeID) -> bool:
    """Whether an HDF5 type is of real numbers, booleans or text."""
    dtype = kind.dtype
    return h5py.check_string_dtype(dtype) is not None or (dtype.kind in "biuf" and h5py.check_enum_dtype(dtype) is None)


if __name__ == "__main__":
    with contextlib.suppress(ImportError):  # on Windows there are no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    try:
        probe(sys.argv[1])
    except Refused as error:
        print(error)
    except Exception as error:  # HDF5 raises anything on a damaged file
        print(f"not a netCDF-4 file, or damaged: {(str(error).splitlines() or [type(error).__name__])[0][:200]}")
