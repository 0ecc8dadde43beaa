"""The recorded table, a netCDF file with the results of every setting at every fidelity; see `record`."""

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
SEEDS = 4  # of the full network, for the better settings
VARIABLES = {
    "loss": ("validation loss, without label smoothing", "nat"),
    "error": ("validation error", "1"),
    "calibrated": ("validation loss after temperature scaling", "nat"),
    "test_loss": ("test loss, last weights", "nat"),
    "test_error": ("test error, last weights", "1"),
    "test_calibrated": ("test loss after temperature scaling, last weights", "nat"),
}


@dataclass(frozen=True)
class SearchTable:
    """A recorded table.

    Attributes:
        data: variables over course (fidelity), setting, seed and epoch; NaN where not recorded, infinite where training
            diverged.
        facts: how the table was made: search file, fidelities and their networks, hardware and versions.
    """

    data: xr.Dataset
    facts: Mapping[str, Any]

    @cached_property
    def settings(self) -> list[dict[str, Any]]:
        """{hyperparameter: value} of each setting."""
        names = [str(each) for each in self.data["hyperparameter"].values]
        whole = {name for name in names if name in self.facts["whole"]}
        return [
            {name: int(value) if name in whole else float(value) for name, value in zip(names, row, strict=True)}
            for row in self.data["value"].values
        ]

    @cached_property
    def number_of(self) -> dict[tuple[Any, ...], int]:
        """{values in order of sorted names: index of the setting}."""
        return {tuple(each[name] for name in sorted(each)): number for number, each in enumerate(self.settings)}

    @cached_property
    def arrays(self) -> dict[str, Numbers]:
        """The variables as plain arrays (fidelity, setting, seed[, epoch])."""
        return {name: np.asarray(self.data[name].values, dtype=np.float64) for name in VARIABLES}

    @cached_property
    def positions(self) -> dict[str, int]:
        """{name of the fidelity: index}."""
        return {str(name): place for place, name in enumerate(self.data["course"].values)}

    def seconds(self, fidelity: str, size: int, how: str | int) -> float:
        """Return the seconds of a training "alone" or per network in ``how`` lanes, or of one validation ("judged").

        Args:
            fidelity: name of the fidelity.
            size: batch size.
            how: "alone", "judged", or a number of lanes.
        """
        return float(self.facts["seconds"][fidelity][str(size)][str(how)])

    def lanes(self, fidelity: str) -> int:
        """Return the lanes of the fidelity's largest fleet; 1 if networks are trained alone."""
        (some, *_) = self.facts["seconds"][fidelity].values()
        return max((int(each) for each in some if each.isdigit()), default=1)

    def mean_seconds(self, fidelity: str, together: bool = True) -> float:
        """Return the seconds of a training in the largest fleet or alone, averaged over batch sizes."""
        how = str(self.lanes(fidelity)) if together and self.lanes(fidelity) > 1 else "alone"
        return float(np.mean([each[how] for each in self.facts["seconds"][fidelity].values()]))

    def cost(self, fidelity: str, together: bool = True) -> float:
        """Return the seconds of a training as a share of the full network's."""
        return self.mean_seconds(fidelity, together) / self.mean_seconds(FULL, together)

    @property
    def epochs(self) -> int:
        """Number of epochs of a full training."""
        return int(self.data.sizes["epoch"])

    def final_values(self, fidelity: str, seed: int = 0, value: str = "calibrated") -> Numbers:
        """Return the final validation value of every setting (settings,)."""
        return self.arrays[value][self.positions[fidelity], :, seed, -1]

    def seen_seeds(self, replay: int) -> NDArray[np.int64]:
        """Draw the seed whose training a replay sees of every fidelity and setting (fidelities, settings)."""
        loss = self.arrays["loss"][..., -1]
        seeds = np.clip((~np.isnan(loss)).sum(axis=2), 1, SEARCHED)  # available seeds (fidelities, settings)
        random = np.random.default_rng(replay)
        return np.asarray(np.floor(random.random(seeds.shape) * seeds).astype(np.int64))

    def expected_test_errors(self, without: NDArray[np.int64]) -> Numbers:
        """Return the full network's expected test error (settings,): the mean over all seeds but one each.

        A diverged network counts as guessing.

        Args:
            without: (settings,) seed left out.
        """
        found = self._errors().copy()
        found[np.arange(len(found)), without] = np.nan
        return np.asarray(np.nanmean(found, axis=1))

    def unseen_test_errors(self) -> Numbers:
        """Return the expected test error (settings,) over seeds that no search sees, else over all seeds."""
        found = self._errors().copy()
        known = np.asarray(~np.isnan(found[:, SEARCHED:])).any(axis=1)
        found[known, :SEARCHED] = np.nan
        return np.asarray(np.nanmean(found, axis=1))

    def _errors(self) -> Numbers:
        """Test errors of the full network (settings, seeds)."""
        diverged = np.isinf(self.arrays["loss"][self.positions[FULL], :, :, -1])
        return np.where(diverged, 1 - 1 / self.facts["classes"], self.arrays["test_error"][self.positions[FULL]])

    def seed_noise(self) -> float:
        """Return the standard deviation of the test error between seeds, pooled over settings with `SEEDS` seeds."""
        found = self.arrays["test_error"][self.positions[FULL]]
        whole = found[np.isfinite(found).all(axis=1)]
        return float(np.sqrt(whole.var(axis=1, ddof=1).mean()))


def assemble(
    names: Sequence[str],
    values: Sequence[Mapping[str, Any]],
    rows: Mapping[tuple[int, int, int], Mapping[str, Any]],
    epochs: int,
    facts: Mapping[str, Any],
) -> xr.Dataset:
    """Build the dataset of a table from rows by (fidelity, setting, seed).

    Args:
        names: names of the fidelities.
        values: {hyperparameter: value} of each setting.
        rows: results; a training of fewer epochs is padded with its last value.
        epochs: epochs of a full training.
        facts: how the table was made.
    """
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
    """Write a table to a compressed netCDF file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {name: {"zlib": True, "complevel": 9, "shuffle": True} for name in (*VARIABLES, "value")}
    data.to_netcdf(path, engine="h5netcdf", encoding=packed)


def open_table(path: str | Path) -> SearchTable:
    """Open a recorded table.

    Raises:
        UserError: the file does not exist or is not a recorded table.
    """
    path = Path(path)
    if not path.is_file():
        made = "python -m regimes.research hpo_benchmark record NAME --objective full"
        raise UserError(f"{path}: no recording; make one with `{made} --out {path.parent}`")
    try:
        data = xr.load_dataset(path, engine="h5netcdf")
        facts = json.loads(data.attrs["facts"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a recording of searches: {str(error).splitlines()[0]}") from error
    return SearchTable(data, facts)


def fidelities_of(facts: Mapping[str, Any]) -> list[RecordedFidelity]:
    """Return the fidelities that a table's facts describe."""
    return [RecordedFidelity(**each["course"]) for each in facts["courses"]]
