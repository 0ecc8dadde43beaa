"""A recording: every setting on every course, as one netCDF file; see `recording`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from regimes.errors import UserError
from regimes.hpo.fidelity_trainer import VALUES
from regimes.research.hpo_benchmark.fidelities import FULL, SEARCHED, RecordedFidelity

Numbers = NDArray[np.float64]
SEEDS = 4  # of the full network, of the better settings
VARIABLES = {
    "loss": ("validation loss, without label smoothing", "nat"),
    "error": ("validation error", "1"),
    "calibrated": ("validation loss, confidence set right", "nat"),
    "test_loss": ("test loss, last weights", "nat"),
    "test_error": ("test error, last weights", "1"),
    "test_calibrated": ("test loss, confidence set right, last weights", "nat"),
}


@dataclass(frozen=True)
class SearchTable:
    """A recording, opened.

    Attributes:
        data: dimensions course, setting, seed, epoch; what was not recorded is NaN, what diverged infinite.
        facts: of how it was made: the search's file, courses and their networks, hardware and versions.
    """

    data: xr.Dataset
    facts: Mapping[str, Any]

    @cached_property
    def settings(self) -> list[dict[str, Any]]:
        """{hyperparameter: value} of each."""
        names = [str(each) for each in self.data["hyperparameter"].values]
        whole = {name for name in names if name in self.facts["whole"]}
        return [
            {name: int(value) if name in whole else float(value) for name, value in zip(names, row, strict=True)}
            for row in self.data["value"].values
        ]

    @cached_property
    def number_of(self) -> dict[tuple[Any, ...], int]:
        """{values by name, sorted: number of the setting}."""
        return {tuple(each[name] for name in sorted(each)): number for number, each in enumerate(self.settings)}

    @cached_property
    def arrays(self) -> dict[str, Numbers]:
        """The variables as plain arrays (course, setting, seed[, epoch])."""
        return {name: np.asarray(self.data[name].values, dtype=np.float64) for name in VARIABLES}

    @cached_property
    def courses(self) -> dict[str, int]:
        """{name: place}."""
        return {str(name): place for place, name in enumerate(self.data["course"].values)}

    def seconds(self, course: str, size: int, how: str | int) -> float:
        """Seconds of a course at a batch size: of a training "alone", or in so many lanes, or of being "judged"."""
        return float(self.facts["seconds"][course][str(size)][str(how)])

    def lanes(self, course: str) -> int:
        """Of the largest fleet that a course is trained in; 1: networks are trained alone."""
        (some, *_) = self.facts["seconds"][course].values()
        return max((int(each) for each in some if each.isdigit()), default=1)

    def mean_seconds(self, course: str, together: bool = True) -> float:
        """Seconds of a training in the largest fleet (or alone), all batch sizes alike."""
        how = str(self.lanes(course)) if together and self.lanes(course) > 1 else "alone"
        return float(np.mean([each[how] for each in self.facts["seconds"][course].values()]))

    def cost(self, course: str, together: bool = True) -> float:
        """Seconds of a training on a course as a share of the full network's."""
        return self.mean_seconds(course, together) / self.mean_seconds(FULL, together)

    @property
    def epochs(self) -> int:
        """Of every training."""
        return int(self.data.sizes["epoch"])

    def last(self, course: str, seed: int = 0, value: str = "calibrated") -> Numbers:
        """What is judged by at the end of training, of every setting (settings,)."""
        return self.arrays[value][self.courses[course], :, seed, -1]

    def seen(self, replay: int) -> NDArray[np.int64]:
        """Which training a replay sees of every course and setting (courses, settings); drawn anew for each replay."""
        loss = self.arrays["loss"][..., -1]
        seeds = np.clip((~np.isnan(loss)).sum(axis=2), 1, SEARCHED)  # (courses, settings) that can be seen
        random = np.random.default_rng(replay)
        return np.asarray(np.floor(random.random(seeds.shape) * seeds).astype(np.int64))

    def tested(self, without: NDArray[np.int64]) -> Numbers:
        """Expected test error of the full network (settings,): the mean of the seeds but one (settings,).

        A network that diverged answers by chance.
        """
        found = self._errors().copy()
        found[np.arange(len(found)), without] = np.nan
        return np.asarray(np.nanmean(found, axis=1))

    def unseen(self) -> Numbers:
        """Expected test error (settings,): of seeds that no search sees where there are any, else of all."""
        found = self._errors().copy()
        known = np.asarray(~np.isnan(found[:, SEARCHED:])).any(axis=1)
        found[known, :SEARCHED] = np.nan
        return np.asarray(np.nanmean(found, axis=1))

    def _errors(self) -> Numbers:
        """Test errors of the full network (settings, seeds)."""
        diverged = np.isinf(self.arrays["loss"][self.courses[FULL], :, :, -1])
        return np.where(diverged, 1 - 1 / self.facts["classes"], self.arrays["test_error"][self.courses[FULL]])

    def seed_noise(self) -> float:
        """Standard deviation of the test error between seeds of one setting, pooled over those with `SEEDS` of them."""
        found = self.arrays["test_error"][self.courses[FULL]]
        whole = found[np.isfinite(found).all(axis=1)]
        return float(np.sqrt(whole.var(axis=1, ddof=1).mean()))


def assemble(
    names: Sequence[str],
    values: Sequence[Mapping[str, Any]],
    rows: Mapping[tuple[int, int, int], Mapping[str, Any]],
    epochs: int,
    facts: Mapping[str, Any],
) -> xr.Dataset:
    """A recording of rows by (course, setting, seed); a training of fewer epochs keeps its last value."""
    shape = (len(names), len(values), SEEDS)
    arrays = {name: np.full((*shape, epochs) if name in VALUES else shape, np.nan) for name in VARIABLES}
    for at, row in rows.items():
        for name in VARIABLES:
            if name in VALUES:
                told = [math.inf if each is None else each for each in row[name]]
                arrays[name][at] = told + told[-1:] * (epochs - len(told))
            elif name in row:
                arrays[name][at] = row[name]
    names_of = sorted(values[0])
    dims = ("course", "setting", "seed")
    return xr.Dataset(
        {
            **{
                name: ((*dims, "epoch")[: each.ndim], each.astype(np.float32), _attributes(name))
                for name, each in arrays.items()
            },
            "value": (
                ("setting", "hyperparameter"),
                np.array([[float(each[name]) for name in names_of] for each in values]),
            ),
        },
        {"course": list(names), "hyperparameter": names_of, "epoch": np.arange(1, epochs + 1)},
        {"facts": json.dumps(facts, sort_keys=True)},
    )


def _attributes(name: str) -> dict[str, str]:
    meaning, unit = VARIABLES[name]
    return {"long_name": meaning, "units": unit}


def write_table(data: xr.Dataset, path: Path) -> None:
    """Write a recording, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {name: {"zlib": True, "complevel": 9, "shuffle": True} for name in (*VARIABLES, "value")}
    data.to_netcdf(path, engine="h5netcdf", encoding=packed)


def open_table(path: str | Path) -> SearchTable:
    """Open a recording.

    Raises:
        UserError: there is none, or the file is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no recording; `python -m regimes.research study recording --out {path.parent}` makes one"
        )
    try:
        data = xr.load_dataset(path, engine="h5netcdf")
        facts = json.loads(data.attrs["facts"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is no recording of searches: {str(error).splitlines()[0]}") from error
    return SearchTable(data, facts)


def courses_of(facts: Mapping[str, Any]) -> list[RecordedFidelity]:
    """The courses of a recording."""
    return [RecordedFidelity(**each["course"]) for each in facts["courses"]]
