"""Replay searches for pruned networks on a table of them: the package's own runner on recorded values and seconds.

A search sees one of the copies of every cell; the others, and further dense seeds, estimate the cell's test error.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import optuna
import xarray as xr
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from regimes.config.hpo import INTEGERS, Hpo
from regimes.config.hpo_file import resolve_hpo
from regimes.experiment.engine_selection import EngineChoice
from regimes.hpo import SAMPLERS
from regimes.hpo.optimize_loop import Limits, run_trials
from regimes.hpo.pruned import DENSITY, EPOCHS
from regimes.hpo.pruned.cell_runner import CellRunner, RunningCell, cell_of, space_of
from regimes.hpo.pruned.cells import Cell, Snapshots
from regimes.hpo.pruned.map_sampler import MapSampler
from regimes.hpo.pruned.observed_cells import Observed, UnitSpace
from regimes.hpo.search_space import distributions
from regimes.registry import lookup

Numbers = NDArray[np.float64]
Point = tuple[int, int]  # index of a setting, and of a snapshot
SPEC_TABLES = ("data", "model", "recipe", "space")


@dataclass(frozen=True)
class PrunedMethod:
    """A way to search for pruned networks.

    Attributes:
        name, description: for tables.
        sampler: a name in `SAMPLERS`, or "nsga2".
        shared: whether trials share dense trainings and are trained in fleets; if not, each is trained alone.
        batch: trials asked for together.
        landscape: whether a second copy of every cell is retrained and the pair measured, for the sampler's directions.
    """

    name: str
    description: str
    sampler: str
    shared: bool = False
    batch: int = 1
    landscape: bool = False


@dataclass(frozen=True)
class Mark:
    """A finished trial: seconds since the start, cell, and validation value."""

    seconds: float
    point: Point
    density: int
    value: float


class PrunedTable:
    """A table of pruned networks, as searches see it.

    Args:
        data: see `pruned_table`.
        densities: indices of the densities that the search is for.
    """

    def __init__(self, data: xr.Dataset, densities: Sequence[int]) -> None:
        self.data, self.facts, self.densities = data, json.loads(data.attrs["facts"]), tuple(densities)
        self.val = data["val_error"].isel(dense_seed=0).values  # (setting, snapshot, density, copy)
        self.epochs = [int(each) for each in data["snapshot"].values]
        self.recorded = [int(each) for each in np.flatnonzero(~np.isnan(self.val).any((1, 2, 3)))]

    @cached_property
    def spec(self) -> Hpo:
        """The search for pruned networks that the table answers."""
        raw = {name: self.facts["spec"][name] for name in SPEC_TABLES if name in self.facts["spec"]}
        values = [float(self.data["density"].values[each]) for each in self.densities]
        space = {**raw["space"], EPOCHS: self.epochs}
        load = {"density": [float(f"{each:g}") for each in values]}
        return resolve_hpo({**raw, "objective": "pruned", "space": space, "load": load}, "replay")

    @cached_property
    def settings(self) -> dict[Point, dict[str, Any]]:
        """The recorded settings with their epochs."""
        names = [str(each) for each in self.data["hyperparameter"].values]
        rows = {number: dict(zip(names, self.data["value"].values[number], strict=True)) for number in self.recorded}
        found = {}
        for number, row in rows.items():
            whole = {name: int(value) if name in INTEGERS else float(value) for name, value in row.items()}
            for place, epoch in enumerate(self.epochs):
                found[number, place] = {**whole, EPOCHS: epoch}
        return found

    def seen(self, seed: int) -> Numbers:
        """Return the validation errors (setting, snapshot, density) that a search sees: those of one copy each."""
        copies = np.random.default_rng(seed).integers(self.val.shape[3], size=self.val.shape[:3])
        return np.take_along_axis(self.val, copies[..., None], 3)[..., 0]

    @property
    def expected(self) -> Numbers:
        """The expected test errors (setting, snapshot, density), from all networks of a cell."""
        return self._means(self._test_errors())

    def tested(self, seed: int) -> Numbers:
        """Return the expected test errors (setting, snapshot, density), without the copy that a search sees."""
        copies = np.random.default_rng(seed).integers(self.val.shape[3], size=self.val.shape[:3])
        errors = self._test_errors()
        np.put_along_axis(errors[..., 0, :], copies[..., None], np.nan, 3)
        return self._means(errors)

    def _test_errors(self) -> Numbers:
        errors = self.data["test_error"].transpose("setting", "snapshot", "density", "dense_seed", "copy")
        return np.array(errors.values)

    @staticmethod
    def _means(errors: Numbers) -> Numbers:
        known = np.where(np.isinf(errors), 1.0, errors).reshape(*errors.shape[:3], -1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # settings that are not recorded
            return np.asarray(np.nanmean(known, axis=-1))

    def measures(self, point: Point, density: int) -> dict[str, float]:
        """Return LMC, CKA and training error of a cell."""
        setting, snapshot = point
        at = self.data.isel(setting=setting, snapshot=snapshot, density=density, dense_seed=0)
        return {name: float(at[name].mean()) for name in ("lmc", "cka", "train_error")}

    @cached_property
    def noise(self) -> Numbers:
        """Standard deviation of the test error of one network of a cell, per density, over copies and dense seeds."""
        errors = self.data["test_error"].transpose("density", "setting", "snapshot", "dense_seed", "copy").values
        errors = errors.reshape(errors.shape[0], -1, errors.shape[3] * errors.shape[4])
        sound = np.where(np.isfinite(errors), errors, np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cells without a sound network
            return np.asarray(np.sqrt(np.nanmean(np.nanvar(sound, axis=2, ddof=1), axis=1)))

    # -- seconds ------------------------------------------------------------------------------------------------------

    def dense_seconds(self, size: int, networks: int, share: float) -> float:
        """Return the seconds of a share of the dense trainings of some networks of one batch size."""
        return share * _together(self.facts["seconds"]["dense"][str(size)], networks)

    def retrain_seconds(self, networks: int) -> float:
        """Return the seconds of pruning and retraining some networks, and of their validation."""
        seconds = self.facts["seconds"]
        return _together(seconds["retrain"], networks) + networks * (seconds["prune"] + seconds["judged"])


def _together(seconds: Mapping[str, float], networks: int) -> float:
    """Seconds of some networks, in fleets where that is faster."""
    sizes = sorted(int(each) for each in seconds if each != "alone")
    best = networks * seconds["alone"]
    for lanes in sizes:
        fleets, rest = divmod(networks, lanes)
        fitting = [each for each in sizes if each >= rest]
        last = min([rest * seconds["alone"], *(each * seconds[str(each)] for each in fitting[:1])]) if rest else 0.0
        best = min(best, fleets * lanes * seconds[str(lanes)] + last)
    return best


class ReplayCells:
    """Costs of cells from the recorded seconds, for the sampler of a map."""

    def __init__(self, table: PrunedTable) -> None:
        self.table = table

    def costs(self, params: Sequence[Mapping[str, Any]], begun: Iterable[Cell]) -> Numbers:
        """Return the cost (n, 1 + densities) of settings; see `Cells.costs`."""
        table, whole = self.table, self.table.epochs[-1]
        snapshots = Snapshots(whole, begun)
        found = np.full((len(params), 1 + len(table.densities)), table.retrain_seconds(8) / 8)
        for row, setting in enumerate(params):
            share = (setting[EPOCHS] - snapshots.start(setting)) / whole
            found[row, 0] = table.dense_seconds(int(setting["batch_size"]), 1, share)
        return found


class ReplayRunner(CellRunner):
    """Runner of cells that looks their values up.

    Args:
        table: the table.
        method: the way to search.
        seed: seed of the search.
    """

    def __init__(self, table: PrunedTable, method: PrunedMethod, seed: int) -> None:
        lanes = int(table.facts["engine"]["lanes"]) if method.shared else 1
        engines = {
            "train": EngineChoice("stacked" if lanes > 1 else "eager", lanes),
            "retrain": EngineChoice("", lanes),
        }
        super().__init__(table.spec, ReplayCells(table), engines)  # type: ignore[arg-type]
        self.table, self.method = table, method
        self.values = table.seen(seed)
        self.points = {_key(each): point for point, each in table.settings.items()}
        self.snapshots = Snapshots(table.epochs[-1])
        self.spent, self.marks = 0.0, list[Mark]()

    def ask(self, study: optuna.Study, count: int) -> list[RunningCell]:
        """Ask as the package does; independent trials one by one. The time that it takes counts."""
        started = time.process_time()
        if self.method.shared:
            found = super().ask(study, count)
        else:
            trial = study.ask(distributions(space_of(self.spec)))
            found = [RunningCell(trial, cell_of(trial.params, self.spec))]
        self.spent += time.process_time() - started
        return found

    def run_batch(self, study: optuna.Study, batch: Sequence[RunningCell]) -> None:
        """Add the seconds of a batch, and tell its values."""
        places = [self.points[_key(each.cell.setting)] for each in batch]
        self.spent += self._dense(places)
        one_by_one = self.engines["retrain"].lanes == 1  # then each is told when it is done, else all together
        self.spent += 0.0 if one_by_one else self._cell_seconds(len(batch))
        assert self.spec.pruned is not None
        for running, point in zip(batch, places, strict=True):
            self.spent += self._cell_seconds(1) if one_by_one else 0.0
            density = self.spec.pruned.densities.index(running.cell.density)
            value = float(self.values[(*point, self.table.densities[density])])
            running.over, front = True, DENSITY in self.space
            self.marks.append(Mark(self.spent, point, density, value if math.isfinite(value) else 1.0))
            if self.method.landscape:
                running.trial.set_user_attr("regimes:cell", self.table.measures(point, self.table.densities[density]))
            if math.isfinite(value):
                study.tell(running.trial, [value, running.cell.density] if front else value)
            else:  # as `CellRunner` does
                running.trial.set_user_attr("regimes:why", "diverged")
                study.tell(running.trial, state=TrialState.FAIL if front else TrialState.PRUNED)

    def _cell_seconds(self, count: int) -> float:
        """Seconds of retraining and measuring some cells, whose dense trainings are done."""
        seconds = self.table.retrain_seconds(count * (1 + self.method.landscape))
        measured = sum(self.table.facts["seconds"][name] for name in ("lmc", "cka"))
        return seconds + (count * measured if self.method.landscape else 0.0)

    def _dense(self, places: Sequence[Point]) -> float:
        """Seconds of the dense trainings of a batch: each once and in fleets, or each alone."""
        whole, epochs = self.table.epochs[-1], self.table.epochs
        size = {point: int(self.table.settings[point]["batch_size"]) for point in places}
        if not self.method.shared:
            return sum(self.table.dense_seconds(size[each], 1, epochs[each[1]] / whole) for each in places)
        groups: dict[tuple[int, float], int] = {}
        for point in dict.fromkeys(sorted(places)):  # the snapshots of a training in their order
            setting = self.table.settings[point]
            share = (setting[EPOCHS] - self.snapshots.start(setting)) / whole
            self.snapshots.add(setting)
            groups[size[point], share] = groups.get((size[point], share), 0) + (share > 0)
        return sum(self.table.dense_seconds(each, count, share) for (each, share), count in groups.items())


def _key(setting: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(float(f"{setting[name]:.6g}") for name in sorted(setting))


# -- samplers that draw recorded cells ---------------------------------------------------------------------------------


class CellPool:
    """The recorded cells of a search, of which each is drawn once."""

    def __init__(self, table: PrunedTable) -> None:
        self.space = distributions(space_of(table.spec))
        cube = UnitSpace.of(self.space)
        assert cube is not None
        self.cube, self.settings = cube, list(table.settings.values())
        self.places = np.array([cube.setting(each) for each in self.settings])

    def nearest(self, asked: Mapping[str, Any], study: optuna.Study, whole: bool = False) -> dict[str, Any]:
        """Return the cell nearest to the asked one that no trial has, at its density while it has any left.

        With ``whole``, settings of which a trial has any cell are out.
        """
        taken = set()
        for trial in study.trials:
            setting = _key({name: trial.params[name] for name in trial.params if name != DENSITY})
            taken.add((setting, None if whole else trial.params.get(DENSITY)))
        away = np.square(self.places - self.cube.setting(asked)).sum(1)
        densities: list[float | None] = [asked[DENSITY]] if DENSITY in asked else [None]
        densities += [each for each in self.cube.densities if each != asked.get(DENSITY)]
        for density in densities:
            for number in map(int, np.argsort(away, kind="stable")):
                if (_key(self.settings[number]), None if whole else density) not in taken:
                    return {**self.settings[number], **({DENSITY: density} if density is not None else {})}
        raise RuntimeError(f"all {len(self.settings)} recorded settings are used up")


class PooledSampler(BaseSampler):
    """Sampler whose draws are moved to the nearest recorded cell that is not taken."""

    def __init__(self, base: BaseSampler, pool: CellPool, whole: bool, held: Mapping[str, Any] | None = None) -> None:
        self.base, self.pool, self.whole, self.held = base, pool, whole, dict(held or {})

    def partly(self, values: Mapping[str, Any]) -> PooledSampler:
        """Return the same sampler with some values fixed."""
        return PooledSampler(self.base, self.pool, self.whole, values)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return self.pool.space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the nearest cell to the base sampler's draw."""
        asked = dict(self.base.sample_relative(study, trial, self.base.infer_relative_search_space(study, trial)))
        for name, each in self.pool.space.items():
            if name not in asked:
                asked[name] = self.base.sample_independent(study, trial, name, each)
        return self.pool.nearest({**asked, **self.held}, study, self.whole)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter outside the space with the base sampler."""
        return self.base.sample_independent(study, trial, param_name, param_distribution)


class PooledMapSampler(MapSampler):
    """Sampler of a map whose candidates are the recorded settings."""

    def __init__(self, seed: int, pool: CellPool, **options: Any) -> None:
        super().__init__(seed, **options)
        self.pool = pool
        self.stock_in_pool = PooledSampler(self.stock, pool, whole=True)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return self.pool.space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the nearest recorded cell to the next one."""
        found = super().sample_relative(study, trial, search_space)
        if not self.planned:
            return self.stock_in_pool.sample_relative(study, trial, search_space)
        return self.pool.nearest(found, study)

    def _candidates(self, seen: Observed, space: UnitSpace) -> list[dict[str, Any]]:
        return self.pool.settings


def replay(table: PrunedTable, method: PrunedMethod, trials: int, seed: int) -> tuple[list[Mark], float]:
    """Replay a search; returns its trials, and its seconds on one core."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pool = CellPool(table)
    sampler: BaseSampler
    if method.sampler == "map":
        chance = float(table.facts["chance_error"])
        sampler = PooledMapSampler(seed, pool, landscape=method.landscape, chance_error=chance)
    else:
        base: BaseSampler = (
            optuna.samplers.NSGAIISampler(seed=seed)
            if method.sampler == "nsga2"
            else lookup(SAMPLERS, method.sampler, "sampler")(seed)
        )
        sampler = PooledSampler(base, pool, whole=method.shared)
    values = 2 if len(table.densities) > 1 else 1
    study = optuna.create_study(directions=["minimize"] * values, sampler=sampler)
    runner = ReplayRunner(table, method, seed)
    run_trials(study, runner, method.batch, Limits(trials))
    return runner.marks, runner.spent


Curve = list[tuple[float, float]]  # (seconds, expected test error, or area under the front of expected test errors)


def curve(marks: Sequence[Mark], tested: Numbers, table: PrunedTable) -> Curve:
    """Return the expected test error of the incumbent over time; of a front, the area under its incumbents' errors.

    Where a density has no network yet its error is 1.
    """
    cube = UnitSpace((), tuple(float(each) for each in table.data["density"].values[list(table.densities)]))
    widths = cube.widths / cube.widths.sum() if len(table.densities) > 1 else np.ones(1)
    best = np.full(len(table.densities), np.inf)
    errors = np.ones(len(table.densities))
    found: Curve = []
    for mark in marks:
        if mark.value < best[mark.density]:
            best[mark.density] = mark.value
            errors[mark.density] = tested[(*mark.point, table.densities[mark.density])]
            attained, least = [], (math.inf, 1.0)
            for value, error in zip(best, errors, strict=True):  # a sparser network may serve, if it validates better
                least = min(least, (value, error))
                attained.append(least[1])
            found.append((mark.seconds, float(np.dot(widths, attained))))
    return found


def time_to(found: Curve, target: float) -> float:
    """Return the seconds until the error is within the target for good; infinite if that never happens."""
    reached = math.inf
    for seconds, error in found:
        if error > target:
            reached = math.inf
        elif math.isinf(reached):
            reached = seconds
    return reached
