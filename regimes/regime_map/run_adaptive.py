"""Run a sweep in rounds: a few cells at a time, chosen by what the map so far is uncertain of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from regimes.config.sweep import Sweep
from regimes.config.sweep_file import read_sweep
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.run import Result, run
from regimes.experiment.stages.stage import Stage
from regimes.experiment.store import Store
from regimes.record.assemble import open_record
from regimes.record.grid import check_grid
from regimes.regime_map import ROUNDS
from regimes.regime_map.acquisition import Cell, MapKnowledge, converged, first_cells, next_cells
from regimes.regime_map.axes import Axis
from regimes.regime_map.measured_grid import MeasuredGrid

LEAST = 8  # cells of a round
PARTS = 20  # a round is this part of the sweep, where that is more
NEEDED = ("lmc", "cka")
At = Mapping[str, float]  # {knob, load, "dense_seed": value} of a cell


@dataclass(frozen=True)
class Adaptive:
    """What an adaptive run did.

    Attributes:
        result: of the last round.
        cells: measured, and all that the sweep has.
        history: how well the map was known after each round.
        enough: whether it stopped because the map is known.
    """

    result: Result
    cells: tuple[int, int]
    history: list[MapKnowledge]
    enough: bool


def run_adaptive(
    sweep: Sweep | str | Path,
    out: str | Path | None = None,
    *,
    budget: int | None = None,
    changes: Sequence[str] = (),
    say: Callable[[int, int, MapKnowledge | None], None] = lambda cells, of, known: None,
    **how: Any,
) -> Adaptive:
    """Run a sweep in rounds and stop when its border and its advice are known.

    The cells of a round are chosen from the records of those before, and written down before they are run: a run that
    was killed goes on with the same cells, and a second one elsewhere chooses the same.

    Args:
        sweep, out, changes: as for `run`.
        budget: cells (temperature x load x dense seed) after which to stop in any case.
        say: called before each round with the cells so far, all cells, and how well the map is known.
        how: as for `run`.

    Raises:
        UserError: as for `run`; metrics without LMC and CKA; no room for a first round in the budget.
    """
    asked, sweep = sweep, sweep if isinstance(sweep, Sweep) else read_sweep(sweep, changes)
    missing = [name for name in NEEDED if name not in sweep.measure.metrics]
    if missing:
        raise UserError(f"an adaptive run needs the metrics lmc and cka; add {', '.join(missing)} to measure.metrics")
    store = Store(Path("runs") / sweep.name if out is None else out)
    empty = _empty(sweep)
    m = MeasuredGrid.of(empty)
    total = len(m.places) * sweep.dense_seeds
    size = max(LEAST, math.ceil(total / PARTS))
    rounds, history = _read(store)
    rounds = rounds or [_named(m, first_cells(m.places, sweep.dense_seeds))]
    if budget is not None and budget < len(rounds[0]):
        raise UserError(f"--budget {budget}: the first round alone has {len(rounds[0])} cells; allowed: that or more")
    while True:
        done = [each for part in rounds for each in part]
        say(len(done), total, history[-1] if history else None)
        # As it was asked for: the run remembers its file, and where its user's own modules stand.
        result = run(asked, out, changes=changes, only=_within(done), **how)
        _write(store, rounds, history)
        if result.progress.failed:
            return Adaptive(result, (len(done), total), history, False)
        cells, known = next_cells(_seen(store, sweep, done), size, sweep.dense_seeds)
        history = [*history[: len(rounds) - 1], known]
        left = size if budget is None else min(size, budget - len(done))
        if converged(history) or not cells or left <= 0:
            _write(store, rounds, history)
            return Adaptive(result, (len(done), total), history, converged(history))
        rounds = [*rounds, _named(m, cells[:left])]
        _write(store, rounds, history)


def _empty(sweep: Sweep) -> xr.Dataset:
    """The sweep's grid before anything is measured."""
    coords: dict[str, Any] = {sweep.knobs[name].name: list(values) for name, values in sweep.temperature.items()}
    hotter = {knob.name: knob.hotter for knob in sweep.knobs.values()}
    if sweep.load.width:
        coords["width"] = list(sweep.load.width)
    coords["density"] = list(sweep.load.density)
    data = xr.Dataset(coords=coords)
    for name, says in hotter.items():
        data[name].attrs["hotter"] = says
    return data


def _named(m: MeasuredGrid, cells: Sequence[Cell]) -> list[dict[str, float]]:
    """Cells by the values of their axes, so that they mean the same in a sweep that has grown."""
    found = []
    for place, seed in cells:
        values = [float(each) for each in _values(m.axes, place)]
        found.append({**dict(zip((axis.name for axis in m.axes), values, strict=True)), "dense_seed": float(seed)})
    return found


def _values(axes: Sequence[Axis], place: int) -> list[float]:
    """The values of a place on sorted axes."""
    found = []
    for axis in reversed(axes):
        place, index = divmod(place, len(axis.values))
        found.append(axis.values[index])
    return found[::-1]


def _within(cells: Sequence[At]) -> Callable[[Stage], bool]:
    """Whether a stage belongs to one of the cells; what these need is added by the run."""
    wanted = {tuple(sorted(each.items())) for each in cells}
    names = set(cells[0])

    def belongs(stage: Stage) -> bool:
        at = {name: float(value) for name, value in stage.at.items() if name in names}
        return len(at) == len(names) and tuple(sorted(at.items())) in wanted

    return belongs


def _seen(store: Store, sweep: Sweep, done: Sequence[At]) -> xr.Dataset:
    """The record of the cells that were chosen, checked, and which those are: a diverged one is not tried again."""
    data = open_record(store.folder)
    tried = xr.zeros_like(data["status"], dtype=float)
    for each in done:
        tried.loc[dict(each)] = 1.0
    for name in NEEDED:
        if name not in data:
            raise UserError(f"{store.folder}: no cell of the first round has {name}: all diverged; try colder settings")
    chosen = {
        name: data[name].where(tried > 0).transpose(*data[name].dims)
        for name in data.data_vars
        if set(tried.dims) <= set(data[name].dims) and name != "status"
    }
    return check_grid(data.assign(chosen).assign(tried=tried), sweep.name)


def _read(store: Store) -> tuple[list[list[dict[str, float]]], list[MapKnowledge]]:
    try:
        found = store.read_json(ROUNDS)
    except DamagedFile as error:
        raise UserError(f"{error}; remove it, and the rounds are chosen anew") from error
    if found is None:
        return [], []
    return found["rounds"], [MapKnowledge(*each) for each in found["known"]]


def _write(store: Store, rounds: Sequence[Sequence[At]], history: Sequence[MapKnowledge]) -> None:
    known = [[each.wrong, each.regret] for each in history]
    store.write_json(ROUNDS, {"rounds": [list(map(dict, each)) for each in rounds], "known": known})
