"""Validation of the tables of a search file that belong to the objective "pruned"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regimes.config.hpo import TUNABLE, PrunedSpec
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import SweepChecker
from regimes.knobs import KNOBS
from regimes.pruners import DISCOVERED

PRUNED_TABLES = ("load", "retrain", "measure")
PRUNED_VALUES = ("error", "loss")
FULL_TABLES = ("ladder", "map")  # proxies of a full network
STUDY_OF_FULL = ("pattern", "promoted", "stopper", "stopper_options")
TUNABLE_PRUNED = ("epochs", *TUNABLE)


def check_pruned(checker: SweepChecker, raw: Mapping[str, Any], recipe: Recipe | None) -> PrunedSpec | None:
    """Validate what a search file says about pruning; return None after an error.

    Args:
        checker: collects the errors.
        raw: the parsed file.
        recipe: the dense networks' recipe.
    """
    for table in FULL_TABLES:
        if table in raw:
            checker.add_error(
                table, f"not used by objective = 'pruned', whose networks are all pruned; remove [{table}]"
            )
    study = raw.get("study", {})
    for name in STUDY_OF_FULL:
        if name in study:
            checker.add_error(f"study.{name}", "not used by objective = 'pruned'; remove it")
    if study.get("value", "error") not in PRUNED_VALUES:
        checker.add_error("study.value", f"{study['value']!r}; objective = 'pruned' allows {', '.join(PRUNED_VALUES)}")
    space = raw.get("space", {})
    knobs = {name: _ends(space[name]) for name in space if name in KNOBS}
    sweep = {name: raw[name] for name in ("data", "model", "recipe", "retrain", "load") if name in raw}
    measure = {"metrics": ["error"], **raw.get("measure", {})}
    if study.get("value") == "loss" and isinstance(measure["metrics"], list):
        measure["metrics"] = list(dict.fromkeys([*measure["metrics"], "val_loss"]))
    sweep |= {"measure": measure, "retrain_seeds": raw.get("retrain_seeds", 1)}
    sweep["temperature"] = knobs or {"learning_rate": [recipe.learning_rate if recipe else 0.1]}
    return _checked(checker, sweep, study.get("against", "density"))


def _checked(checker: SweepChecker, raw: Mapping[str, Any], against: str) -> PrunedSpec | None:
    """Validate load, retraining and metrics as those of a sweep over the ends of the space."""
    trial = SweepChecker(checker.source)
    trial.folder = checker.folder
    found = trial.sweep(raw, "search")
    said = [each.replace(": temperature", ": space", 1) for each in trial.errors]
    checker.errors += [each for each in said if each not in checker.errors]
    if found is None:
        return None
    if found.load.width:
        checker.add_error("load.width", "a search has one model; use density, and remove width")
    if found.load.pruner == DISCOVERED:
        checker.add_error("load.pruner", f"'{DISCOVERED}' has no densities to search at; use another pruner")
    if against in ("macs", "latency") and not found.load.structured:
        checker.add_error(
            "study.against",
            f"'{against}' needs pruner = 'channels-magnitude' or 'channels-random': masks alone make no network faster",
        )
    return PrunedSpec(load=found.load, retrain=found.retrain, retrain_seeds=found.retrain_seeds, measure=found.measure)


def _ends(dimension: Any) -> list[Any]:
    """The values of a list, or the ends of a range; an unreadable dimension is reported elsewhere."""
    if isinstance(dimension, list):
        return dimension
    if isinstance(dimension, Mapping) and {"low", "high"} <= set(dimension):
        return [dimension["low"], dimension["high"]]
    return []
