"""Validation of the ``[load]`` table of a sweep file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regimes.config.recipe import Recipe
from regimes.config.sweep import LoadConfig
from regimes.config.validation import Checker
from regimes.errors import UserError
from regimes.knobs import KNOBS, Knob
from regimes.pruners import ALLOCATIONS, DISCOVERED, PRUNERS, STRUCTURED_PRUNERS
from regimes.registry import lookup


def check_load(
    checker: Checker,
    raw: Mapping[str, Any],
    recipe: Recipe | None,
    temperature: Mapping[str, Any],
    pretrained: bool,
) -> LoadConfig | None:
    """Validate the ``[load]`` table of a sweep file; return None if it cannot be read.

    Args:
        checker: collects the errors.
        raw: the parsed file.
        recipe: the dense networks' recipe.
        temperature: {knob: values}.
        pretrained: whether dense networks come from checkpoints.
    """
    table = raw.get("load")
    if table is None:
        return None
    discovered = table.get("pruner") == DISCOVERED
    key, other = ("nu", "density") if discovered else ("density", "nu")
    if key in table:
        table = {
            **table,
            key: checker.check_list(f"load.{key}", table[key]) or [1.0],
        }  # an empty list has been reported
    else:
        checker.add_error(f"load.{key}", "missing")
    if other in table:
        checker.add_error(f"load.{other}", f"the load axis of pruner '{table.get('pruner', 'magnitude')}' is {key}")
    axis: LoadConfig | None = checker.validate(LoadConfig, "load", table)
    if axis is None:
        return None
    checker.resolve_name("load.allocation", axis.allocation, ALLOCATIONS, "allocation")
    if discovered:
        _check_discovered(checker, axis, table, pretrained)
        check_discovery_loop(checker, recipe)
    elif not axis.structured:
        names = {**PRUNERS, **dict.fromkeys((*STRUCTURED_PRUNERS, DISCOVERED), "")}
        checker.resolve_name("load.pruner", axis.pruner, names, "pruner")
    elif axis.allocation not in ("uniform", "global"):
        checker.add_error("load.allocation", f"channel pruning allows 'uniform' or 'global', got {axis.allocation!r}")
    elif axis.rewind is not None:
        checker.add_error("load.rewind", f"needs masks; '{axis.pruner}' makes smaller networks, without rewinding")
    if axis.embeddings and axis.structured:
        checker.add_error("load.embeddings", f"needs masks; '{axis.pruner}' makes smaller networks")
    if axis.schedule == "one-shot" and axis.rounds is not None:
        checker.add_error("load.rounds", "one-shot pruning has one round; set schedule = 'iterative' or 'gradual'")
    if axis.rewind is not None:
        _check_rewind(checker, axis.rewind, recipe, temperature, pretrained)
    return axis


def _check_rewind(
    checker: Checker, rewind: int, recipe: Recipe | None, temperature: Mapping[str, Any], pretrained: bool
) -> None:
    stops = [value for name, values in temperature.items() if _is_epochs(name) for value in values]
    shortest = min(stops, default=recipe.epochs if recipe else None)
    if pretrained:
        checker.add_error("load.rewind", "needs a dense training to rewind to; not available with [dense] checkpoints")
    elif shortest is not None and rewind > shortest:
        checker.add_error("load.rewind", f"{rewind} exceeds the shortest dense training, {shortest} epochs")


def _check_discovered(checker: Checker, axis: LoadConfig, table: Mapping[str, Any], pretrained: bool) -> None:
    for name in ("allocation", "schedule", "rounds", "rewind"):
        if name in table:
            checker.add_error(f"load.{name}", f"not allowed with pruner = '{DISCOVERED}', got {table[name]!r}")
    if pretrained:
        checker.add_error("load.pruner", f"'{DISCOVERED}' trains from fresh weights; it cannot use [dense] checkpoints")
    if axis.discover.settle_error:
        checker.add_error("load.discover.settle", axis.discover.settle_error)
    if "nu" in table.get("discover", {}):
        checker.add_error("load.discover.nu", "set load.nu instead")


def check_discovery_loop(checker: Checker, recipe: Recipe | None) -> None:
    """Check that the recipe of a discovery has no training loop of its own."""
    if recipe is not None and recipe.train:
        checker.add_error("recipe.train", "discovery trains with a loop of its own; remove it")


def _is_epochs(name: str) -> bool:
    try:
        knob = lookup(KNOBS, name, "knob")
    except UserError:
        return False  # it has been reported
    return isinstance(knob, Knob) and knob.name == "epochs"
