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

from regimes.config.hpo import Hpo
from regimes.config.recipe import Recipe
from regimes.config.sweep import Sweep
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.context import RunContext
from regimes.experiment.expand import cell_stages, dense_stages, layout_of, without_duplicates
from regimes.experiment.stages.prune import PruneStage
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.stages.stage import Stage
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.hpo.pruned.network_cost import network_cost
from regimes.knobs import Value

VALUES = {"error": "val_error", "loss": "val_loss"}  # variable of the record that is minimised, by study.value
DENSITY = "density"  # name of the density among a trial's parameters


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
        cost: density, parameters, MACs or seconds of a forward pass, whichever the search weighs it against.
        why: "diverged", the error message of a stage that failed, or "".
        measures: {variable: mean over copies or pairs} of everything measured without the test split.
    """

    value: float
    cost: float
    why: str
    measures: Mapping[str, float]


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
    """

    def __init__(self, spec: Hpo, context: RunContext, store: Store, known: Store | None = None) -> None:
        self.spec, self.context, self.store, self.known = spec, context, store, known
        self._stages: dict[Cell, tuple[Stage, ...]] = {}

    @cached_property
    def base(self) -> Sweep:
        """The sweep without settings."""
        return sweep_of(self.spec)

    def stages(self, cell: Cell, recipe: Recipe | None = None) -> tuple[Stage, ...]:
        """Return the stages of a cell, each after those it needs; with another, equivalent recipe if one is given."""
        if recipe is None and cell in self._stages:
            return self._stages[cell]
        load = self.base.load.model_copy(update={"density": (cell.density,)})
        sweep = self.base.model_copy(update={"points": (cell.setting,), "load": load})
        (first,) = dense_stages(sweep, self.context)
        dense = replace(first, seed=cell.seed, coords={**first.coords, "dense_seed": cell.seed})
        if recipe is not None:
            return (other := replace(dense, recipe=recipe), *cell_stages(sweep, other))
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
        return self.result_of(self.stages(cell), cell.density, self.store)

    def result_of(self, stages: Sequence[Stage], density: float, store: Store) -> CellResult:
        """Return the result of a cell's stages in a store."""
        measures: dict[str, list[float]] = {}
        why, cost = "", density
        for stage in stages:
            record, failed = store.read(stage.key), store.failure(stage.key)
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
        if not why:
            (pruned,) = (each for each in stages if isinstance(each, PruneStage) and not each.intermediate)
            cost = network_cost(pruned, self.spec.study.against, self.context, store)
        return CellResult(value, cost, why, found)

    def layout(self, cells: Iterable[Cell]) -> dict[str, Any]:
        """Return the layout of the run folder: settings in the order of their first cell, and the cells' stages."""
        every = list(cells)
        settings = list({cell.items: cell.setting for cell in every}.values())
        stages = without_duplicates([stage for cell in every for stage in self.stages(cell)])
        sweep = self.base.model_copy(update={"points": tuple(settings)})
        layout = layout_of(sweep, stages, self.context)
        layout["coords"]["dense_seed"] = sorted({cell.seed for cell in every})
        return layout

    @staticmethod
    def copies(stages: Iterable[Stage]) -> list[RetrainStage]:
        """Return the final retrained copies among stages."""
        return [each for each in stages if isinstance(each, RetrainStage) and not each.intermediate]
