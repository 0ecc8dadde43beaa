"""Assemble the records of a run's stages into one `xarray.Dataset`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regimes.experiment.atomic_files import DamagedFile, Record
from regimes.experiment.store import Store, open_store, reads_run

LOADS = ("width", "nu", "density")
COORDINATE_ATTRS = (
    ("density", "1", "density (fraction of prunable weights kept)"),
    ("nu", "nat", "nu (loss that the whole network's complexity is worth)"),
    ("width", "1", "width of the model"),
)
MAX_VALUES = 10**8  # of a variable over all coordinates
STATUS = ("pending", "ok", "diverged", "failed")
STATUS_BY_SEVERITY = (1, 2, 0, 3)  # ok < diverged < pending < failed; the worst stage of a cell counts


@reads_run
def open_record(run: str | Path) -> xr.Dataset:
    """Return all measurements of a run so far.

    Dimensions: the knobs (of a search: ``setting``, with the hyperparameters as its coordinates), ``width`` if it
    varies, ``density`` (``nu`` if networks are discovered; their densities are in ``kept``), ``dense_seed``, and
    ``retrain_seed`` or ``pair``.
    Variables: ``test_error``, ``val_error``, ``dense_test_error``, ``kept``, and those of the metrics, with
    ``<name>_stderr`` for estimates. Cells without a measurement are NaN; ``status`` (pending, ok, diverged, failed)
    gives the reason. Attributes: ``prunable`` (how many weights are, which are not); of variables: ``units``,
    ``long_name`` and, for metrics, ``measured_with``.

    Args:
        run: the run folder.

    Raises:
        UserError: there is no run in the folder, or its files cannot be read.
    """
    store = open_store(run)
    layout = store.layout
    grid = _Grid(layout)
    for stage in layout["stages"]:
        try:
            record = store.read(stage["key"])
        except DamagedFile:
            record = None  # counts as pending; `regimes run` reports it and repeats the stage
        failed = record is None and store.failure(stage["key"]) is not None
        grid.add(stage, record, failed)
    return grid.dataset(store)


class _Grid:
    """Arrays that are filled stage by stage."""

    def __init__(self, layout: Record) -> None:
        self.layout = layout
        self.knobs = [knob["name"] for knob in layout["knobs"]]
        self.coords: dict[str, list[Any]] = {name: sorted(values) for name, values in layout["coords"].items()}
        self.index = {name: {value: i for i, value in enumerate(values)} for name, values in self.coords.items()}
        self.arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        self.attrs: dict[str, dict[str, Any]] = {}
        loads = [name for name in LOADS if name in self.coords]
        settings = ["setting"] if "settings" in layout else []
        self.cell = (*self.knobs, *settings, *loads, "dense_seed")
        if math.prod(map(len, self.coords.values())) > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values in a variable")
        shape = [len(self.coords[name]) for name in self.cell]
        self.status = np.full(shape, 1, dtype=np.int8)
        self.tried = np.full(shape, not settings)  # a search does not try every setting at every density
        self.order = (*self.cell, "retrain_seed", "pair")

    def add(self, stage: Record, record: Record | None, failed: bool) -> None:
        """Insert one stage's values, and update the status of its cell."""
        at = stage["at"]
        state = STATUS.index("failed" if failed else "pending" if record is None else record["status"])
        cell = tuple(self.index[name][at[name]] if name in at else slice(None) for name in self.cell)
        self.tried[cell] |= all(name in at for name in self.cell)
        worse = np.array(STATUS_BY_SEVERITY).tolist().index
        old = self.status[cell]
        self.status[cell] = np.where(np.vectorize(worse)(old) < worse(state), np.int8(state), old)
        if record is None or stage.get("aside") or record["status"] == "diverged":
            return  # its values stay NaN
        prefix = "dense_" if stage["kind"] in ("train", "given") else ""
        how = record["description"].get("options")
        for name, entry in record["values"].items():
            self._put(prefix + name, at, entry, how)

    def _put(self, name: str, at: Record, entry: Record, how: Record | None) -> None:
        dims = tuple(dim for dim in self.order if dim in at)
        place = tuple(self.index[dim][at[dim]] for dim in dims)
        attrs = {"units": entry["units"], "long_name": entry["long_name"]}
        if how:
            attrs["measured_with"] = ", ".join(f"{key}={value}" for key, value in sorted(how.items()))
        if "coordinate" in entry:
            self.coords.setdefault(entry["coordinate"], entry["at"])
            self._set(name, (*dims, entry["coordinate"]), place, [_number(each) for each in entry["value"]], attrs)
            return
        self._set(name, dims, place, _number(entry["value"]), attrs)
        if "stderr" in entry:
            about = {"units": entry["units"], "long_name": f"standard error of {name}"}
            self._set(f"{name}_stderr", dims, place, _number(entry["stderr"]), about)

    def _set(self, name: str, dims: tuple[str, ...], place: tuple[int, ...], value: Any, attrs: Record) -> None:
        if name not in self.arrays:
            shape = [len(self.coords[dim]) for dim in dims]
            self.arrays[name] = (dims, np.full(shape, np.nan))
            self.attrs[name] = attrs
        self.arrays[name][1][place] = value

    def dataset(self, store: Store) -> xr.Dataset:
        """Return the dataset of all stages added."""
        used = {dim for dims, _ in self.arrays.values() for dim in dims} | {*self.cell}
        variables: dict[str, Any] = {name: (*self.arrays[name], self.attrs[name]) for name in sorted(self.arrays)}
        variables["status"] = (
            self.cell,
            np.where(self.tried, self.status, np.int8(STATUS.index("pending"))),
            {
                "long_name": "state of the cell",
                "flag_values": np.arange(len(STATUS), dtype=np.int8),
                "flag_meanings": " ".join(STATUS),
            },
        )
        data = xr.Dataset(variables, {name: values for name, values in self.coords.items() if name in used})
        for name in (self.layout.get("settings") or [{}])[0]:
            data = data.assign_coords({name: ("setting", [each[name] for each in self.layout["settings"]])})
        for knob in self.layout["knobs"]:
            data[knob["name"]].attrs = {key: knob[key] for key in ("units", "long_name", "hotter")}
        for name, units, long_name in COORDINATE_ATTRS:
            if name in data.coords:
                data[name].attrs = {"units": units, "long_name": long_name}
        data.attrs = {"title": self.layout["name"], "source": "regimes", "Conventions": "CF-1.11"}
        if self.layout.get("predictions_per_input", 1) > 1:
            data.attrs["predictions_per_input"] = self.layout["predictions_per_input"]
        if self.layout.get("chance_error") is not None:  # not in runs of earlier versions
            data.attrs["chance_error"] = self.layout["chance_error"]
        if "coverage" in self.layout:  # not in runs of earlier versions
            data.attrs["prunable"] = " | ".join(each["text"] for each in self.layout["coverage"])
        if "epochs" in self.knobs and self.layout.get("first_decay") is not None:
            data["epochs"].attrs["first_decay"] = self.layout["first_decay"]
        head = store.run_info or {}
        if "numerics" in head:
            data.attrs["numerics"] = ", ".join(f"{key}={value}" for key, value in head["numerics"].items())
        return data


def _number(value: float | None) -> float:
    return math.nan if value is None else value
