"""Outcome of a search for pruned networks: the best cells, their test errors, and what sharing saved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from regimes.config.hpo import Hpo
from regimes.errors import UserError
from regimes.experiment.stages.stage import Stage
from regimes.experiment.stages.train import TrainStage
from regimes.hpo.pruned.cell_runner import cell_of, rows
from regimes.hpo.pruned.cells import Cell, Cells
from regimes.hpo.requeue import holders
from regimes.hpo.trial_attrs import PREFIX

DoStages = Callable[[Sequence[Stage]], None]


def best_of(study: optuna.Study) -> list[FrozenTrial]:
    """Return the best trial; of a front, its trials from the cheapest to the most expensive.

    Raises:
        UserError: no trial finished.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        trials = study.get_trials(deepcopy=False)
        states = [each.state.name.lower() for each in trials]
        said = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states)) or "no trials"
        held = f"; trials are held by {', '.join(holders(study))}: if gone, use --take-over" if holders(study) else ""
        reasons = [each.user_attrs[f"{PREFIX}why"] for each in trials if f"{PREFIX}why" in each.user_attrs]
        why = f"; the first failed: {reasons[0]}" if reasons and reasons[0] != "diverged" else ""
        advice = "use more trials or more time" + (
            "" if why else ", or smaller values of a hyperparameter that diverges"
        )
        raise UserError(f"no trial finished ({said}){held}{why}: {advice}")
    if len(study.directions) == 1:
        return [study.best_trial]
    by_cost: dict[tuple[float, ...], FrozenTrial] = {}
    for trial in sorted(study.best_trials, key=lambda each: (each.values[1], each.number)):
        by_cost.setdefault(tuple(trial.values), trial)  # of equal trials the first
    return list(by_cost.values())


def tested(best: Sequence[FrozenTrial], spec: Hpo, cells: Cells, do: DoStages) -> list[dict[str, Any]]:
    """Train the best cells again with fresh seeds, and return their test errors, which the search never uses.

    Args:
        best: the best trials.
        spec: the search's settings.
        cells: the cells.
        do: does the stages that are missing.

    Raises:
        UserError: a training failed.
    """
    seeds = range(spec.seed + 1, spec.seed + 1 + spec.final_seeds)
    fresh = {
        each.number: [dataclasses.replace(cell_of(each.params, spec), seed=seed) for seed in seeds] for each in best
    }
    do([stage for each in fresh.values() for cell in each for stage in cells.stages(cell)])
    for cell in (cell for each in fresh.values() for cell in each):
        why = cells.result(cell).why
        if why not in ("", "diverged"):
            raise UserError(
                f"a final training failed: {why}; the trials are kept: repeat the command once it is mended"
            )
    found = []
    for trial in best:
        errors = [_test_error(cell, cells) for cell in fresh[trial.number]]
        known = [each for each in errors if math.isfinite(each)]
        found.append(
            {
                "trial": trial.number,
                "params": {name: trial.params[name] for name in spec.space},
                "density": cell_of(trial.params, spec).density,
                "value": trial.values[0],
                "cost": trial.values[1] if len(trial.values) > 1 else None,
                "test_errors": [each if math.isfinite(each) else None for each in errors],
                "test_error": float(np.mean(known)) if known else None,
                "test_error_sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
            }
        )
    return found


def _test_error(cell: Cell, cells: Cells) -> float:
    values = []
    for stage in cells.copies(cells.stages(cell)):
        record = cells.store.read(stage.key)
        value = None if record is None else record["values"].get("test_error", {}).get("value")
        values.append(math.nan if value is None else float(value))
    return float(np.mean(values))


def spending(study: optuna.Study, spec: Hpo, cells: Cells) -> dict[str, Any]:
    """Return the seconds that the trials took, and what they would have taken without shared dense trainings.

    ``curve`` has the seconds after each finished trial, over all workers; seconds of a stage that several trials share
    count at the first of them.
    """
    seen: set[str] = set()
    spent = alone = 0.0
    trainings: set[str] = set()
    curve = []
    finished = rows(study)
    for trial, _ in finished:
        cell = cell_of(trial.params, spec)
        if f"{PREFIX}adopted" in trial.user_attrs:
            continue  # the run has paid for it
        if not _is_known(cells.stages(cell)[0].key, cells):
            trainings.add(cells.training(cell))
        for key, seconds in _seconds(cell, cells).items():
            alone += seconds
            if key not in seen and not _is_known(key, cells):
                spent += seconds
            seen.add(key)
        done = trial.state == TrialState.COMPLETE
        curve.append({"seconds": spent, "trial": trial.number, "values": trial.values if done else None})
    return {
        "trials": len(finished),
        "asked": spec.trials,
        "adopted": sum(f"{PREFIX}adopted" in trial.user_attrs for trial, _ in finished),
        "trainings": len(trainings),
        "seconds": spent,
        "alone_seconds": alone,
        "curve": curve,
    }


def _is_known(key: str, cells: Cells) -> bool:
    """Whether a stage was taken from the map's run."""
    return cells.known is not None and cells.known.record_file(key).exists()


def _seconds(cell: Cell, cells: Cells) -> dict[str, float]:
    """Seconds of a cell's stages by key, with the earlier snapshots of its dense training."""
    found = {}
    for stage in cells.stages(cell):
        keys = [stage.key]
        if isinstance(stage, TrainStage):
            keys = [f"{stage.training}-e{epoch}" for epoch in range(1, stage.epoch + 1)]
        for key in keys:
            record = cells.store.read(key)
            if record is not None:
                found[key] = float(record["seconds"])
    return found
