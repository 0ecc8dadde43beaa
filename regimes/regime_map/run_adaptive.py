"""Adaptive sweeps: run a sweep in rounds, each with the cells where the map is most uncertain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from regimes.config.sweep import Sweep
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.store import Store
from regimes.record.assemble import open_record
from regimes.record.grid import check_grid
from regimes.regime_map import ROUNDS_FILE
from regimes.regime_map.acquisition import Cell, MapKnowledge, converged, first_cells, next_cells
from regimes.regime_map.axes import Axis
from regimes.regime_map.measured_grid import MeasuredGrid

if TYPE_CHECKING:
    from regimes.experiment.run import Result
    from regimes.experiment.stages.stage import Stage

MIN_ROUND_CELLS = 8
ROUNDS_PER_SWEEP = 20  # a round has 1/20 of the cells, but at least `MIN_ROUND_CELLS`
REQUIRED_METRICS = ("lmc", "cka")
CellSetting = Mapping[str, float]  # {knob, load, "dense_seed": value} of a cell


@dataclass(frozen=True)
class AdaptiveResult:
    """Result of an adaptive sweep.

    Attributes:
        result: the result of the last round's `run`.
        cells: (number of cells chosen, number of cells of the sweep).
        history: how well the map was known after each round.
        converged: whether the sweep stopped because the map is known well enough.
    """

    result: Result
    cells: tuple[int, int]
    history: list[MapKnowledge]
    converged: bool


def run_adaptive(
    sweep: Sweep | str | Path,
    out: str | Path | None = None,
    *,
    budget: int | None = None,
    changes: Sequence[str] = (),
    say: Callable[[int, int, MapKnowledge | None], None] = lambda cells, of, known: None,
    **how: Any,
) -> AdaptiveResult:
    """Run a sweep in rounds until its border and its advice are known well enough.

    The cells of a round are chosen from the records of the earlier rounds and saved before they are run, so that an
    interrupted sweep resumes with the same cells. The choice is deterministic.

    Args:
        sweep, out, changes: as for `run`.
        budget: maximum number of cells (temperature x load x dense seed).
        say: called before each round with the number of cells so far, of all cells, and how well the map is known
            (None before the first round).
        how: options of `run`.

    Raises:
        UserError: as for `run`; the metrics lack LMC or CKA; the budget is smaller than the first round.
    """
    from regimes.config.sweep_file import read_sweep
    from regimes.experiment.run import run

    given, sweep = sweep, sweep if isinstance(sweep, Sweep) else read_sweep(sweep, changes)
    missing = [name for name in REQUIRED_METRICS if name not in sweep.measure.metrics]
    if missing:
        raise UserError(f"an adaptive sweep needs the metrics lmc and cka; add {', '.join(missing)} to measure.metrics")
    store = Store(Path("runs") / sweep.name if out is None else out)
    empty = _empty(sweep)
    m = MeasuredGrid.of(empty)
    total = len(m.places) * sweep.dense_seeds
    size = max(MIN_ROUND_CELLS, math.ceil(total / ROUNDS_PER_SWEEP))
    rounds, history = _read(store)
    rounds = rounds or [_named(m, first_cells(m.places, sweep.dense_seeds))]
    if budget is not None and budget < len(rounds[0]):
        raise UserError(f"--budget {budget}: less than the {len(rounds[0])} cells of the first round; use that or more")
    while True:
        done = [each for part in rounds for each in part]
        say(len(done), total, history[-1] if history else None)
        # Pass the original argument: the run records the sweep file and where the user's own modules are.
        result = run(given, out, changes=changes, only=_within(done), **how)
        _write(store, rounds, history)
        if result.progress.failed:
            return AdaptiveResult(result, (len(done), total), history, False)
        cells, known = next_cells(_seen(store, sweep, done), size, sweep.dense_seeds)
        history = [*history[: len(rounds) - 1], known]
        left = size if budget is None else min(size, budget - len(done))
        if converged(history) or not cells or left <= 0:
            _write(store, rounds, history)
            return AdaptiveResult(result, (len(done), total), history, converged(history))
        rounds = [*rounds, _named(m, cells[:left])]
        _write(store, rounds, history)


def _empty(sweep: Sweep) -> xr.Dataset:
    """The grid of a sweep before any measurement."""
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
    """Cells by the values of their axes, so that they stay valid if the sweep file gains values."""
    found = []
    for place, seed in cells:
        values = [float(each) for each in _values(m.axes, place)]
        found.append({**dict(zip((axis.name for axis in m.axes), values, strict=True)), "dense_seed": float(seed)})
    return found


def _values(axes: Sequence[Axis], place: int) -> list[float]:
    """The axis values of a flat index into the sorted grid."""
    found = []
    for axis in reversed(axes):
        place, index = divmod(place, len(axis.values))
        found.append(axis.values[index])
    return found[::-1]


def _within(cells: Sequence[CellSetting]) -> Callable[[Stage], bool]:
    """A predicate: does a stage belong to one of the cells? The run adds the stages these depend on."""
    wanted = {tuple(sorted(each.items())) for each in cells}
    names = set(cells[0])

    def belongs(stage: Stage) -> bool:
        at = {name: float(value) for name, value in stage.coords.items() if name in names}
        return len(at) == len(names) and tuple(sorted(at.items())) in wanted

    return belongs


def _seen(store: Store, sweep: Sweep, done: Sequence[CellSetting]) -> xr.Dataset:
    """The checked record of the chosen cells, with ``tried`` marking them, so that diverged ones are not repeated."""
    data = open_record(store.folder)
    tried = xr.zeros_like(data["status"], dtype=float)
    for each in done:
        tried.loc[dict(each)] = 1.0
    for name in REQUIRED_METRICS:
        if name not in data:
            raise UserError(f"{store.folder}: no {name} in the first round: all cells diverged; use colder settings")
    chosen = {
        name: data[name].where(tried > 0).transpose(*data[name].dims)
        for name in data.data_vars
        if set(tried.dims) <= set(data[name].dims) and name != "status"
    }
    return check_grid(data.assign(chosen).assign(tried=tried), sweep.name)


def _read(store: Store) -> tuple[list[list[dict[str, float]]], list[MapKnowledge]]:
    try:
        found = store.read_json(ROUNDS_FILE)
    except DamagedFile as error:
        raise UserError(f"{error}; remove it to choose the rounds again") from error
    if found is None:
        return [], []
    return found["rounds"], [MapKnowledge(*each) for each in found["known"]]


def _write(store: Store, rounds: Sequence[Sequence[CellSetting]], history: Sequence[MapKnowledge]) -> None:
    known = [[each.wrong, each.regret] for each in history]
    store.write_json(ROUNDS_FILE, {"rounds": [list(map(dict, each)) for each in rounds], "known": known})
