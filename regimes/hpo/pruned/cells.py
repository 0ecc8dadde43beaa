"""Cells of a search: their stages, their results, and their layout in the run folder."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regimes.config.hpo import INTEGERS, Hpo
from regimes.config.sweep import Sweep
from regimes.experiment.atomic_files import DamagedFile, read_checked
from regimes.experiment.context import RunContext
from regimes.experiment.expand import cell_stages, dense_stages, layout_of, without_duplicates
from regimes.experiment.stages.prune import PruneStage
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.stages.stage import Stage
from regimes.experiment.stages.train import TrainStage, training_cost
from regimes.experiment.store import Store
from regimes.hpo.pruned import DENSITY, EPOCHS
from regimes.hpo.pruned.network_cost import network_cost
from regimes.knobs import Value

Numbers = NDArray[np.float64]
PLAN = "plan.json"  # file of the search's key and of what its map decided
VALUES = {"error": "val_error", "loss": "val_loss"}  # variable of the record that is minimised, by study.value


@dataclass(frozen=True)
class Cell:
    """A setting of the dense training, and the density to which its network is pruned.

    Attributes:
        items: the setting as ((name, value), ...), in the order of the search space.
        density: fraction of the prunable weights kept.
        seed: dense seed.
    """

    items: tuple[tuple[str, Value], ...]
    density: float
    seed: int = 0

    @property
    def setting(self) -> dict[str, Value]:
        """The setting as {name: value}."""
        return dict(self.items)


@dataclass(frozen=True)
class CellResult:
    """Result of a cell.

    Attributes:
        value: validation error or loss after retraining, mean over the copies; NaN if ``why`` is not empty.
        why: "diverged", the error message of a stage that failed, or "".
        measures: {variable: mean over copies or pairs} of everything measured without the test split.
    """

    value: float
    why: str
    measures: Mapping[str, float]


class Snapshots:
    """Snapshots that dense trainings have.

    Args:
        epochs: epochs of a whole training.
        begun: cells whose dense trainings exist.
    """

    def __init__(self, epochs: int, begun: Iterable[Cell] = ()) -> None:
        self.epochs, self._found = epochs, dict[tuple[Any, ...], set[int]]()
        for cell in begun:
            self.add(cell.setting)

    def add(self, setting: Mapping[str, Any]) -> None:
        """Add the snapshot of a setting."""
        self._found.setdefault(_training(setting), set()).add(int(setting.get(EPOCHS, self.epochs)))

    def start(self, setting: Mapping[str, Any]) -> int:
        """Return the epoch from which a setting's dense training goes on: that of the latest snapshot, 0 without."""
        stop = int(setting.get(EPOCHS, self.epochs))
        return max((each for each in self._found.get(_training(setting), ()) if each <= stop), default=0)


def _training(setting: Mapping[str, Any]) -> tuple[Any, ...]:
    """The part of a setting that decides its dense training: all but density and epoch."""
    return tuple((name, setting[name]) for name in sorted(setting) if name not in (DENSITY, EPOCHS))


def sweep_of(spec: Hpo, points: Sequence[Mapping[str, Value]] = ()) -> Sweep:
    """Return the sweep that a search's cells belong to, with settings as points."""
    assert spec.pruned is not None
    pruned = spec.pruned
    return Sweep(
        name=re.sub(r"[^\w.-]", "-", spec.name).lstrip(".-") or "search",
        data=spec.data,
        model=spec.model,
        recipe=spec.recipe,
        retrain=pruned.retrain,
        temperature={},
        load=pruned.load,
        measure=pruned.measure,
        retrain_seeds=pruned.retrain_seeds,
        points=tuple(dict(each) for each in points),
    )


class Cells:
    """The cells of a search.

    Args:
        spec: the search's settings.
        context: data, model and device of the run folder.
        store: the store of the run folder.
        known: the store of a run whose stages are taken over; None without one.
        plain_batch: whether a cell with the recipe's own batch size has the recipe of a sweep that does not vary it,
            which is the same training under another key.
    """

    def __init__(
        self, spec: Hpo, context: RunContext, store: Store, known: Store | None = None, plain_batch: bool = False
    ) -> None:
        self.spec, self.context, self.store, self.known, self.plain_batch = spec, context, store, known, plain_batch
        self._stages: dict[Cell, tuple[Stage, ...]] = {}

    @cached_property
    def base(self) -> Sweep:
        """The sweep without settings."""
        return sweep_of(self.spec)

    def stages(self, cell: Cell) -> tuple[Stage, ...]:
        """Return the stages of a cell, each after those it needs."""
        if cell not in self._stages:
            load = self.base.load.model_copy(update={"density": (cell.density,)})
            sweep = self.base.model_copy(update={"points": (cell.setting,), "load": load})
            (first,) = dense_stages(sweep, self.context)
            recipe = first.recipe
            if self.plain_batch and recipe.batch_size == self.base.recipe.batch_size:
                recipe = recipe.model_copy(update={"epoch_batch": self.base.recipe.epoch_batch})
            coords = {**first.coords, "dense_seed": cell.seed}
            dense = replace(first, recipe=recipe, seed=cell.seed, coords=coords)
            self._stages[cell] = (dense, *cell_stages(sweep, dense))
        return self._stages[cell]

    def take_known(self, stages: Iterable[Stage]) -> None:
        """Copy the stages that the known run has already, with the same numerics, into the store."""
        if self.known is None:
            return
        for stage in stages:
            with contextlib.suppress(DamagedFile):
                record = self.known.read(stage.key)
                if record is not None and record["numerics"] == self.context.spec.numerics.id:
                    self.store.copy_from(self.known, stage.key)

    def training(self, cell: Cell) -> str:
        """Return the key of a cell's dense training, which cells of other densities and epochs share."""
        dense = self.stages(cell)[0]
        assert isinstance(dense, TrainStage)
        return dense.training

    def result(self, cell: Cell) -> CellResult:
        """Return the result of a cell whose stages are done or have failed."""
        measures: dict[str, list[float]] = {}
        why = ""
        for stage in self.stages(cell):
            record, failed = self.store.read(stage.key), self.store.failure(stage.key)
            if record is None:
                why = why or (failed["error"] if failed else "not finished")
                continue
            if record["status"] == "diverged":
                why = "diverged"
            if not stage.intermediate:
                for name, entry in record["values"].items():
                    if "test" not in name and not isinstance(entry["value"], list):
                        value = math.nan if entry["value"] is None else float(entry["value"])
                        prefix = "dense_" if stage.kind == "train" else ""
                        measures.setdefault(prefix + name, []).append(value)
        found = {name: float(np.mean(values)) for name, values in measures.items()}
        value = math.nan if why else found.get(VALUES[self.spec.study.value], math.nan)
        if not why and not math.isfinite(value):
            why = "diverged"
        return CellResult(value, why, found)

    def cost(self, cell: Cell) -> float:
        """Return the cost of a finished cell's network on a front; see `network_cost`.

        Raises:
            DamagedFile: its weights, which MACs and latency need, were removed.
        """
        stages = self.stages(cell)
        (pruned,) = (each for each in stages if isinstance(each, PruneStage) and not each.intermediate)
        return network_cost(pruned, self.spec.study.against, self.context, self.store)

    def costs(self, params: Sequence[Mapping[str, Any]], begun: Iterable[Cell]) -> Numbers:
        """Return the estimated cost (n, 1 + densities) of settings: of what is missing of the dense training, and of
        each density's stages, in forward passes of an input.

        Args:
            params: settings of the search space.
            begun: cells whose dense trainings exist.
        """
        assert self.spec.pruned is not None
        images, epochs = self._any_dense.images, self.spec.recipe.epochs
        single = {
            name: each.choices[0] for name, each in self.spec.space.items() if each.choices and len(each.choices) == 1
        }
        snapshots = Snapshots(epochs, begun)
        found = np.tile([0.0, *self._density_costs], (len(params), 1))
        for row, given in enumerate(params):
            setting = {name: {**single, **given}[name] for name in self.spec.space}
            stop = int(setting.get(EPOCHS, epochs))
            cost = training_cost(self.base.dense_recipe(setting), images, evaluated=stop)
            found[row, 0] = cost * (1 - snapshots.start(setting) / stop)
        return found

    @cached_property
    def _any_dense(self) -> TrainStage:
        setting = {name: each.ends[0] for name, each in self.spec.space.items()}
        items = tuple((name, int(value) if name in INTEGERS else value) for name, value in setting.items())
        assert self.spec.pruned is not None
        dense = self.stages(Cell(items, self.spec.pruned.densities[0], self.spec.seed))[0]
        assert isinstance(dense, TrainStage)
        return dense

    @cached_property
    def _density_costs(self) -> list[float]:
        """Cost of the stages after the dense training at each density, which no setting changes."""
        assert self.spec.pruned is not None
        dense = self._any_dense
        by_density: dict[float, float] = dict.fromkeys(self.spec.pruned.densities, 0.0)
        for stage in cell_stages(self.base, dense):
            by_density[stage.coords["density"]] += stage.cost
        return [by_density[each] for each in self.spec.pruned.densities]

    def layout(self, cells: Iterable[Cell]) -> dict[str, Any]:
        """Return the layout of the run folder: settings in the order of their first cell, and the cells' stages."""
        every = list(cells)
        settings = list({cell.items: cell.setting for cell in every}.values())
        stages = without_duplicates([stage for cell in every for stage in self.stages(cell)])
        sweep = self.base.model_copy(update={"points": tuple(settings)})
        layout = layout_of(sweep, stages, self.context)
        layout["coords"]["dense_seed"] = sorted({cell.seed for cell in every})
        origin = (read_checked(self.store.folder / PLAN) or {}).get("origin", {})
        return {**layout, "origin": {"file": "the trials of a search", "imports_from": ".", **origin, "search": True}}

    @staticmethod
    def copies(stages: Iterable[Stage]) -> list[RetrainStage]:
        """Return the final retrained copies among stages."""
        return [each for each in stages if isinstance(each, RetrainStage) and not each.intermediate]
