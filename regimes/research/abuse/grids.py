"""Malformed grids: a valid netCDF grid with random edits of its arrays, attributes, links or bytes; what they give."""

from __future__ import annotations

import contextlib
import shutil
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from regimes.diagnosis.diagnose_cell import diagnose_cell
from regimes.errors import UserError
from regimes.plots.draw_map import draw_classified
from regimes.plots.html_page import cells_of, curves_of, numbers_of
from regimes.plots.report import write_report
from regimes.record.export import export
from regimes.record.grid import open_grid, save_grid
from regimes.regime_map.regime_map import classify_and_map
from regimes.research.abuse.watchdog import OverTime, time_limit

LIMIT = 10.0  # seconds of processor time for one grid, 60 with figures
DRAWN = 50  # every 50th seed also draws the figures
MARKUP = ("<script>alert(1)</script>", "x](javascript:alert(1))", "=1+1", "a|b`c", "$x", "a\x1b[31m\n#", "=" * 10**6)
NUMBERS = (np.nan, np.inf, -np.inf, 1e308, -1e300, 5e-324, -1.0, 0.0, 2.0, 101.0)
ATTRIBUTES = (
    *("title", "units", "long_name", "hotter", "load", "chance_error", "predictions_per_input", "flag_meanings"),
    *(
        "_FillValue",
        "scale_factor",
        "add_offset",
        "coordinates",
        "dtype",
        "calendar",
        "CLASS",
        "NAME",
        "DIMENSION_LIST",
    ),
)
TYPES: tuple[Any, ...] = (
    *("?", "i1", "u8", "f2", "f4", "c16", "S3", "V5"),
    *(h5py.ref_dtype, h5py.string_dtype(), h5py.vlen_dtype("f8"), h5py.enum_dtype({"a": 0, "b": 1}, "i1")),
    [("a", "f8"), ("b", "i4")],
)


def attack(seed: int, folder: Path) -> str:
    """Make one malformed grid and give it to everything that reads grids: map, page, advice, diagnosis, export.

    Args:
        seed: the same seed makes the same grid.
        folder: an existing folder for the files of this call.

    Returns:
        "read", "refused" (a `UserError` of one line), "traceback: ..." with the error and its place, or "over time",
        which is processor time of this process; HDF5 reads the file in another one, with a limit of its own.
    """
    random = np.random.default_rng([seed, 77])
    path = folder / "malformed.nc"
    malformed_grid(random, path, _valid_file(folder))
    try:
        with warnings.catch_warnings(), time_limit(6 * LIMIT if seed % DRAWN == 0 else LIMIT):
            warnings.simplefilter("ignore")
            return _outcome(path, folder, [*USES, _draw] if seed % DRAWN == 0 else USES)
    except OverTime:
        return "over time"


def malformed_grid(random: np.random.Generator, path: Path, valid: Path) -> None:
    """Write a valid grid with one to three random edits of its arrays, or with damaged bytes."""
    if random.random() < 0.35:
        path.write_bytes(_damaged(random, valid.read_bytes()))
        return
    shutil.copy(valid, path)
    for _ in range(random.integers(1, 4)):
        edit: Any = random.choice(np.array([_retyped, _attribute, _values, _linked, _renamed, _reshaped], object))
        with contextlib.suppress(Exception), h5py.File(path, "r+") as file:  # HDF5 itself may refuse an edit
            edit(random, file)


def _valid_file(folder: Path) -> Path:
    path, random = folder / "valid.nc", np.random.default_rng(0)
    if path.exists():
        return path
    sizes = {"epochs": 4, "density": 3, "dense_seed": 2, "pair": 2, "t": 3}

    def over(dims: str, low: float, high: float) -> tuple[list[str], np.ndarray]:
        return dims.split(), random.uniform(low, high, [sizes[dim] for dim in dims.split()])

    cell = "epochs density dense_seed"
    status = (cell.split(), np.ones([4, 3, 2], np.int8), {"flag_meanings": "pending ok diverged failed"})
    variables = {
        "lmc": over(f"{cell} pair", -0.4, 0.01),
        "cka": over(f"{cell} pair", 0.5, 1.0),
        "lmc_stderr": over(f"{cell} pair", 0.001, 0.01),
        "test_error": over(cell, 0.1, 0.5),
        "train_error": over(cell, 0.0, 0.2),
        "lmc_error": over(f"{cell} pair t", 0.0, 0.5),
        "kept": over(cell, 0.05, 0.06),
    }
    coords = {"epochs": [10, 20, 40, 80], "density": [0.05, 0.2, 0.8], "dense_seed": [0, 1], "t": [0.0, 0.5, 1.0]}
    save_grid(xr.Dataset({**variables, "status": status}, coords, {"title": "grid", "chance_error": 0.9}), path)
    return path


def _damaged(random: np.random.Generator, content: bytes) -> bytes:
    """Return the content with flipped, zeroed, cut or inserted bytes."""
    data = bytearray(content)
    at = int(random.integers(len(data)))
    way = random.integers(5)
    if way == 0:
        return bytes(data[:at])
    if way == 1:
        return bytes(data[:at] + random.bytes(int(random.integers(1, 64))) + data[at:])
    if way == 2:
        data[at : at + 64] = bytes(len(data[at : at + 64]))
        return bytes(data)
    for place in random.integers(len(data) if way == 3 else 2048, size=random.integers(1, 9)):  # headers are in front
        data[place] = random.integers(256)
    return bytes(data)


def _retyped(random: np.random.Generator, file: h5py.File) -> None:
    """Replace an array by one of another type with the same dimensions."""
    name = str(random.choice(list(file)))
    old = file[name]
    kind = TYPES[random.integers(len(TYPES))]
    new = file.create_dataset("new", shape=old.shape, dtype=kind)
    if isinstance(kind, str) and kind[0] in "ifuSc":
        new[...] = random.integers(0, 3, old.shape).astype(kind)
    _put_in_place(file, name, new)


def _reshaped(random: np.random.Generator, file: h5py.File) -> None:
    """Replace an array by one of another size: empty, huge and sparse, scalar, or transposed."""
    name = str(random.choice(list(file)))
    shapes: tuple[Any, ...] = ((), (0,), (10**6, 10**6), (7,), file[name].shape[::-1], None)
    shape = shapes[random.integers(len(shapes))]
    large = {"chunks": (1000, 1000)} if shape == (10**6, 10**6) else {}
    new = file.create_dataset("new", data=h5py.Empty("f8")) if shape is None else None
    _put_in_place(file, name, new if new is not None else file.create_dataset("new", shape, "f8", **large))


def _put_in_place(file: h5py.File, name: str, new: h5py.Dataset) -> None:
    """Put an array in the place of another; as a coordinate, or with the dimensions that fit."""
    old = file[name]
    if old.is_scale:
        new.make_scale(name)
        for other in [each for each in file.values() if isinstance(each, h5py.Dataset) and not each.is_scale]:
            for dim in other.dims:
                if old in list(dim.values()):
                    dim.detach_scale(old)
                    dim.attach_scale(new)
    else:
        for ours, theirs in zip(new.dims, old.dims, strict=False):
            ours.attach_scale(theirs[0])
    del file[name]
    file.move("new", name)


def _attribute(random: np.random.Generator, file: h5py.File) -> None:
    """Set an attribute of the file or of an array to an odd value."""
    owner = file if random.random() < 0.3 else file[str(random.choice(list(file)))]
    values: tuple[Any, ...] = (
        *(*MARKUP, *NUMBERS, b"\xff\xfe", 1j, True, ["a", "b"], [1.0, 2.0], h5py.Empty("f8"), h5py.Empty("S1")),
        *(np.zeros(2, TYPES[-1]), file.ref, "", "larger", "smaller", "days since yesterday", "nat", 7),
    )
    owner.attrs[str(random.choice(ATTRIBUTES))] = values[random.integers(len(values))]


def _values(random: np.random.Generator, file: h5py.File) -> None:
    """Set some or all values of an array to one number."""
    array = file[str(random.choice(list(file)))]
    data = array[...]
    chosen = random.random(data.shape) < random.choice([0.1, 0.5, 1.0])
    with np.errstate(all="ignore"):
        data[chosen] = np.array(random.choice(NUMBERS)).astype(data.dtype)
    array[...] = data


def _linked(random: np.random.Generator, file: h5py.File) -> None:
    """Add a link, a group, a virtual array, or an array in another file."""
    name = str(random.choice(["lmc", "test_error", "alias"]))
    way = random.integers(7)
    if name in file:
        del file[name]
    if way == 0:
        file[name] = h5py.SoftLink(f"/{name}")
    elif way == 1:
        file[name] = h5py.ExternalLink("other.nc", "lmc")
    elif way == 2:
        file.create_dataset(name, (64,), "u1", external=[("other.txt", 0, 64)])
    elif way == 3:
        file.create_group(name)[name] = file["/"]
    elif way == 4:
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource("other.nc", "lmc", (3,))
        file.create_virtual_dataset(name, layout)
    elif way == 5:
        file[name] = np.dtype("f8")
    else:
        file[name] = file["cka"]


def _renamed(random: np.random.Generator, file: h5py.File) -> None:
    """Give an array an odd name."""
    known = ("value", "phase", "..", "lmc", "nu", "width", "curve", "status", "regime", "setting", "x" * 300)
    name = str(random.choice(np.array([*MARKUP[:-1], *known])))
    file.move(str(random.choice(list(file))), name.replace("/", "|"))


def _export(data: xr.Dataset, folder: Path) -> None:
    for form in ("csv", "nc"):
        export(data, folder / f"out.{form}", form)


def _map(data: xr.Dataset, folder: Path) -> None:
    data, chart = classify_and_map(data, name="grid")
    write_report(data, folder, {})
    cells_of(data), numbers_of(data), curves_of(data)
    if chart is not None:
        chart.select(chart.densities[0] if chart.densities else None)


def _draw(data: xr.Dataset, folder: Path) -> None:
    data, chart = classify_and_map(data, name="grid")
    draw_classified(data, chart, folder / "figures")


def _diagnose(data: xr.Dataset, _: Path) -> None:
    diagnose_cell(data, 0.2, {"epochs": 20})


USES: tuple[Callable[[xr.Dataset, Path], None], ...] = (_export, _map, _diagnose)


def _outcome(path: Path, folder: Path, uses: Sequence[Callable[[xr.Dataset, Path], None]]) -> str:
    """Return "read" if every use of the grid succeeds or refuses it in one line, and at least one succeeds."""
    answered = 0
    try:
        data = open_grid(path)
        for use in uses:
            with contextlib.suppress(UserError):
                use(data.copy(deep=True), folder)
                answered += 1
    except UserError as error:
        return "refused" if len(error.lines) == 1 else f"traceback: {len(error.lines)} lines: {error}"
    except Exception as error:
        own = [each for each in traceback.extract_tb(error.__traceback__) if "/regimes/" in each.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        return f"traceback: {type(error).__name__} at {where}: {str(error)[:120]}"
    return "read" if answered else "refused"
