"""The table of pruned networks, a netCDF file: settings trained, stopped, pruned and retrained; see `record_pruned`.

Dimensions
    setting: the first settings of the recording; ``value`` (setting, hyperparameter) has their hyperparameters.
    dense_seed: dense trainings of a setting; seed 0 of every setting, further ones of the better quarter.
    snapshot: coordinate ``snapshot``, the epoch at which the dense training is stopped, its schedule unchanged.
    density: coordinate ``density``, the fraction of the prunable weights that magnitude pruning keeps.
    copy: copies retrained from one mask by the file's recipe, the same for all settings; they differ in data order.
    pair: pairs of copies, (0, 1), (0, 2), (1, 2), ...
    epoch: coordinate ``epoch``, epochs of a training.

Variables
    `EVALUATED` (setting, dense_seed, snapshot, density, copy): of each retrained copy, with its last weights.
    ``dense_`` + `EVALUATED` (setting, dense_seed, snapshot): of the dense network at the snapshot, before pruning.
    ``val_error_by_epoch`` (setting, dense_seed, snapshot, density, copy, epoch), ``dense_val_error_by_epoch``
    (setting, dense_seed, epoch): after every epoch of the retraining and of the dense training.
    ``kept`` (setting, dense_seed, snapshot, density): density of the mask.
    ``lmc``, ``cka`` (setting, dense_seed, snapshot, density, pair), ``hessian_trace`` (setting, dense_seed, snapshot,
    density): of pairs of retrained copies, and of copy 0.

NaN: not recorded, or a measure of a diverged network. Infinite: errors and losses of a diverged training; a copy of a
diverged network counts as diverged.

The attribute ``facts`` is JSON: ``spec`` (the search file), ``design`` (`PrunedDesign`), ``engine`` (of retrainings),
``classes``, ``chance_error``, ``whole`` (hyperparameters that are integers), ``asking`` (seconds that TPE takes to draw
a setting), ``environment``, ``beside`` (load of the machine when timing began), and ``seconds`` (processor time)::

    seconds["dense"][batch size]["alone" | "8" | "16" ...]
        of a whole dense training of one network, without evaluations: by the engine eager, and per network in a fleet
        of 8, 16, ... if the engine trains fleets
    seconds["retrain"]["alone" | "8" | "16" ...]
        the same of a whole retraining
    seconds["judged" | "evaluated"]
        of one validation; of one evaluation on the validation and test split, which the recorder makes after every
        epoch
    seconds["prune" | "lmc" | "cka" | "hessian_trace"]
        of pruning one network, and of measuring one pair or one network

A dense network stopped at epoch e takes e / epochs of the seconds of a dense training.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.research.hpo_benchmark.recordings import PrunedDesign

EVALUATED = {
    "test_error": ("test error", "1"),
    "test_loss": ("test loss", "nat"),
    "val_error": ("validation error", "1"),
    "val_loss": ("validation loss, without label smoothing", "nat"),
    "val_calibrated": ("validation loss after temperature scaling", "nat"),
    "train_error": ("training error, with the labels that were trained on", "1"),
    "train_loss": ("training loss, without label smoothing", "nat"),
}
DENSE, POINT = ("setting", "dense_seed", "snapshot"), ("setting", "dense_seed", "snapshot", "density")
VARIABLES = {
    **{name: ((*POINT, "copy"), *words) for name, words in EVALUATED.items()},
    **{f"dense_{name}": (DENSE, f"{words} of the dense network", unit) for name, (words, unit) in EVALUATED.items()},
    "val_error_by_epoch": ((*POINT, "copy", "epoch"), "validation error after each epoch of the retraining", "1"),
    "dense_val_error_by_epoch": (("setting", "dense_seed", "epoch"), "validation error after each dense epoch", "1"),
    "kept": (POINT, "fraction of prunable weights kept", "1"),
    "lmc": ((*POINT, "pair"), "linear mode connectivity of two copies", "1"),
    "cka": ((*POINT, "pair"), "CKA similarity of two copies", "1"),
    "hessian_trace": (POINT, "Hessian trace of copy 0", "1"),
}
Values = Mapping[str, Mapping[tuple[int, ...], Any]]  # {variable: {index: number, or a list of one per epoch}}


def assemble_pruned(
    design: PrunedDesign,
    epochs: int,
    settings: Sequence[Mapping[str, Any]],
    values: Values,
    facts: Mapping[str, Any],
) -> xr.Dataset:
    """Build the dataset of a table from the values that are recorded so far; the others are NaN.

    Args:
        design: sizes of the table.
        epochs: epochs of a training.
        settings: {hyperparameter: value} of each setting.
        values: the recorded values; None: not finite.
        facts: how the table was made.
    """
    coords: dict[str, Any] = {
        "setting": range(design.settings),
        "dense_seed": range(design.dense_seeds[1]),
        "snapshot": snapshot_epochs(design, epochs),
        "density": design.densities,
        "copy": range(design.copies),
        "pair": range(len(pairs_of(design))),
        "epoch": range(1, epochs + 1),
    }
    data = {}
    for name, (dims, words, unit) in VARIABLES.items():
        array = np.full([len(coords[each]) for each in dims], np.nan, np.float32)
        for at, found in values.get(name, {}).items():
            array[at] = [_number(each) for each in found] if isinstance(found, list) else _number(found)
        data[name] = (dims, array, {"long_name": words, "units": unit})
    names = sorted(settings[0])
    chosen = np.array([[float(each[name]) for name in names] for each in settings[: design.settings]])
    return xr.Dataset(
        {**data, "value": (("setting", "hyperparameter"), chosen)},
        {**{name: list(each) for name, each in coords.items()}, "hyperparameter": names},
        {"facts": json.dumps({**facts, "design": asdict(design)}, sort_keys=True)},
    )


def _number(found: float | None) -> float:
    return math.inf if found is None else found


def snapshot_epochs(design: PrunedDesign, epochs: int) -> list[int]:
    """Return the epochs at which a dense training is stopped."""
    return sorted({max(1, round(share * epochs)) for share in design.snapshots})


def pairs_of(design: PrunedDesign) -> list[tuple[int, int]]:
    """Return the pairs of copies."""
    return list(itertools.combinations(range(design.copies), 2))


def write_pruned(data: xr.Dataset, path: Path) -> None:
    """Write a table to a compressed netCDF file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {str(name): {"zlib": True, "complevel": 9, "shuffle": True} for name in data.data_vars}
    data.to_netcdf(path, engine="h5netcdf", encoding=packed)


def open_pruned(path: str | Path) -> tuple[xr.Dataset, dict[str, Any]]:
    """Open a table of pruned networks; return it with its facts.

    Raises:
        UserError: the file does not exist or is not such a table.
    """
    path = Path(path)
    if not path.is_file():
        made = "python -m regimes.research hpo_benchmark record NAME --objective pruned"
        raise UserError(f"{path}: no table of pruned networks; make one with `{made} --out {path.parent}`")
    try:
        data = xr.load_dataset(path, engine="h5netcdf")
        facts = json.loads(data.attrs["facts"])
        data = data[[*VARIABLES, "value"]].assign_attrs(data.attrs)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a table of pruned networks: {str(error).splitlines()[0]}") from error
    return data, facts
