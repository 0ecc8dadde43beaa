"""Cells of a run of a sweep as finished trials of a search: nothing is trained twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from regimes.config.hpo import Dimension, Hpo
from regimes.config.recipe import Recipe
from regimes.config.sweep import Sweep
from regimes.experiment.store import open_store
from regimes.hpo.pruned.cell_runner import cell_of, row_of, space_of
from regimes.hpo.pruned.cells import DENSITY, Cell, CellResult, Cells
from regimes.hpo.search_space import distributions
from regimes.hpo.trial_attrs import PREFIX
from regimes.knobs import KNOBS, Value

COMPARED = ("data", "model", "recipe", "retrain", "load")  # tables in which a run may differ from a search


def add_known_cells(study: optuna.Study, cells: Cells, run: str | Path) -> tuple[int, str]:
    """Add the cells of a run that lie in the search's space as finished trials, each once.

    Cells are recognised by the keys of their stages: same key, same training. So only cells of the same data, model,
    recipes and pruning method are taken.

    Args:
        study: the study.
        cells: the search's cells.
        run: folder of the run.

    Returns:
        The number of trials added, and why there are none, "" if there are.

    Raises:
        UserError: there is no run in the folder.
    """
    store, spec = open_store(run), cells.spec
    sweep = Sweep.model_validate(store.layout["sweep"])
    names = set(space_of(spec))
    known = {cell_of(each.params, spec) for each in study.get_trials(deepcopy=False) if names <= set(each.params)}
    own = cells.context.spec.numerics.id
    count = 0
    for cell, recipe in candidates(spec, sweep):
        if cell in known:
            continue
        same = _counted(recipe) == _counted(cells.base.dense_recipe(cell.setting))
        for stages in (cells.stages(cell), *((cells.stages(cell, recipe),) if same else ())):
            records = [store.read(stage.key) for stage in stages]
            if all(record is not None and record["numerics"] == own for record in records):
                count += _add(study, cell, cells, cells.result_of(stages, cell.density, store))
                break
    return count, "" if count else _why_none(spec, sweep)


def _counted(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe, with the batch size of its epochs written out."""
    return {**recipe.model_dump(), "epoch_batch": recipe.epoch_batch or recipe.batch_size}


def candidates(spec: Hpo, sweep: Sweep) -> Iterator[tuple[Cell, Recipe]]:
    """Yield the cells of a sweep's settings that lie in a search's space, with the sweep's recipes."""
    assert spec.pruned is not None
    for temperature in sweep.temperatures():
        recipe = sweep.dense_recipe(temperature)
        given = {sweep.knobs[each].name if each in sweep.knobs else each: temperature[each] for each in temperature}
        values = {name: given.get(name, getattr(recipe, name)) for name in spec.space}
        if all(_contains(spec.space[name], value) for name, value in values.items()):
            for density in spec.pruned.densities:
                yield Cell(tuple(values.items()), density, spec.seed), recipe


def _contains(dimension: Dimension, value: Value) -> bool:
    if dimension.choices is not None:
        return value in dimension.choices
    low, high = dimension.ends
    return low <= value <= high


def _add(study: optuna.Study, cell: Cell, cells: Cells, result: CellResult) -> int:
    """Add a finished cell to the study; returns the number of trials added."""
    space = space_of(cells.spec)
    if result.why:
        return 0
    front = DENSITY in space
    params = {**cell.setting, **({DENSITY: cell.density} if front else {})}
    about = {f"{PREFIX}cell": row_of(cell, result), f"{PREFIX}adopted": True}
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            params=params,
            distributions=distributions(space),
            values=[result.value, result.cost] if front else [result.value],
            user_attrs=about,
        )
    )
    return 1


def _why_none(spec: Hpo, sweep: Sweep) -> str:
    """The differences between a run and a search that share no cell, in words."""
    assert spec.pruned is not None
    ours = {"data": spec.data, "model": spec.model, "recipe": spec.recipe, "retrain": spec.pruned.retrain}
    free = {"recipe": {*spec.space, *KNOBS, "stop", "epoch_batch"}, "load": {"density", "width"}}
    ours["load"] = spec.pruned.load
    said = []
    for table in COMPARED:
        here, there = ours[table].model_dump(), getattr(sweep, table).model_dump()
        names = sorted({*here, *there} - free.get(table, set()))
        said += [
            f"{table}.{name} = {there.get(name)}, not {here.get(name)}"
            for name in names
            if here.get(name) != there.get(name)
        ]
    return "; ".join(said) or "no setting and density of it lies in the space of the search, or its engines differ"
