"""Cells of a run of a sweep as finished trials of a search: nothing is trained twice."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
from optuna.trial import TrialState, create_trial

from regimes.config.hpo import Hpo
from regimes.config.sweep import Sweep
from regimes.experiment.atomic_files import DamagedFile
from regimes.hpo.pruned import DENSITY
from regimes.hpo.pruned.cell_runner import cell_of, row_of, space_of
from regimes.hpo.pruned.cells import Cell, Cells
from regimes.hpo.search_space import distributions
from regimes.hpo.trial_attrs import PREFIX
from regimes.knobs import KNOBS

COMPARED = ("data", "model", "recipe", "retrain", "load")  # tables in which a run may differ from a search


def add_known_cells(study: optuna.Study, cells: Cells) -> tuple[int, str]:
    """Add the cells of the known run that lie in the search's space as finished trials, each once.

    Cells are recognised by the keys of their stages, which are copied: same key, same training. So only cells of the
    same data, model, recipes and pruning method are taken.

    Returns:
        The number of trials added, and why none can be, "" if some can.
    """
    assert cells.known is not None
    spec = cells.spec
    sweep = Sweep.model_validate(cells.known.layout["sweep"])
    names = set(space_of(spec))
    have = {cell_of(each.params, spec) for each in study.get_trials(deepcopy=False) if names <= set(each.params)}
    added, known = 0, False
    for cell in candidates(spec, sweep):
        cells.take_known(cells.stages(cell))
        if all(cells.store.record_file(stage.key).exists() for stage in cells.stages(cell)):
            known = True
            added += 0 if cell in have else _add(study, cell, cells)
    return added, "" if known else _why_none(spec, sweep)


def candidates(spec: Hpo, sweep: Sweep) -> Iterator[Cell]:
    """Yield the cells of a sweep's settings that lie in a search's space."""
    assert spec.pruned is not None
    for temperature in sweep.temperatures():
        recipe = sweep.dense_recipe(temperature)
        given = {sweep.knobs[each].name if each in sweep.knobs else each: temperature[each] for each in temperature}
        values = {name: given.get(name, getattr(recipe, name)) for name in spec.space}
        if all(spec.space[name].contains(value) for name, value in values.items()):
            for density in spec.pruned.densities:
                yield Cell(tuple(values.items()), density, spec.seed)


def _add(study: optuna.Study, cell: Cell, cells: Cells) -> int:
    """Add a finished cell to the study; returns the number of trials added."""
    space, result = space_of(cells.spec), cells.result(cell)
    if result.why:
        return 0
    front = DENSITY in space
    try:
        values = [result.value, cells.cost(cell)] if front else [result.value]
    except DamagedFile:
        return 0
    params = {**cell.setting, **({DENSITY: cell.density} if front else {})}
    about = {f"{PREFIX}cell": row_of(cell, result), f"{PREFIX}adopted": True}
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            params=params,
            distributions=distributions(space),
            values=values,
            user_attrs=about,
        )
    )
    return 1


def _why_none(spec: Hpo, sweep: Sweep) -> str:
    """The differences between a run and a search that share no cell, in words."""
    assert spec.pruned is not None
    pruned = spec.pruned
    ours = {"data": spec.data, "model": spec.model, "recipe": spec.recipe, "retrain": pruned.retrain}
    ours["load"] = pruned.load
    free = {"recipe": {*spec.space, *KNOBS, "stop", "epoch_batch"}, "load": {"density", "width"}}
    said = []
    for table in COMPARED:
        here, there = ours[table].model_dump(), getattr(sweep, table).model_dump()
        names = sorted({*here, *there} - free.get(table, set()))
        wrong = [name for name in names if here.get(name) != there.get(name)]
        said += [f"{table}.{name} = {there.get(name)}, not {here.get(name)}" for name in wrong]
    if spec.seed >= sweep.dense_seeds:
        said.append(f"it has dense_seeds = {sweep.dense_seeds}, the search trains seed = {spec.seed}")
    if pruned.retrain_seeds > sweep.retrain_seeds:
        said.append(f"retrain_seeds = {sweep.retrain_seeds}, not {pruned.retrain_seeds}")
    missing = [name for name in pruned.measure.metrics if name not in sweep.measure.metrics]
    if missing:
        said.append(f"it does not measure {', '.join(missing)}")
    other = "none of its finished cells lies in the space of the search, or it was trained with other engines"
    return "; ".join(said) or other
