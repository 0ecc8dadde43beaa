"""Check the load axes of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regimes.config.recipe import Recipe
from regimes.config.sweep import LoadConfig
from regimes.config.validation import Checker
from regimes.errors import UserError
from regimes.knobs import KNOBS, Knob
from regimes.pruners import ALLOCATIONS, DISCOVERED, PRUNERS, STRUCTURED
from regimes.registry import load


def check_load(
    checker: Checker,
    raw: Mapping[str, Any],
    recipe: Recipe | None,
    temperature: Mapping[str, Any],
    given: bool,
) -> LoadConfig | None:
    """The ``[load]`` table of a sweep file; mistakes are noted by the checker, None where it cannot be read.

    Args:
        checker: of the file.
        raw: the parsed file.
        recipe: of the dense networks.
        temperature: {knob: values}.
        given: whether dense networks come from checkpoints.
    """
    table = raw.get("load")
    if table is None:
        return None
    discovered = table.get("pruner") == DISCOVERED
    key, other = ("nu", "density") if discovered else ("density", "nu")
    if key in table:
        table = {**table, key: checker.axis(f"load.{key}", table[key]) or [1.0]}  # an empty list has been spoken of
    else:
        checker.say(f"load.{key}", "missing")
    if other in table:
        checker.say(f"load.{other}", f"the load axis of pruner '{table.get('pruner', 'magnitude')}' is {key}")
    axis: LoadConfig | None = checker.table(LoadConfig, "load", table)
    if axis is None:
        return None
    checker.known("load.allocation", axis.allocation, ALLOCATIONS, "allocation")
    if discovered:
        _discovered(checker, axis, table, given)
    elif not axis.structured:
        names = {**PRUNERS, **dict.fromkeys((*STRUCTURED, DISCOVERED), "")}
        checker.known("load.pruner", axis.pruner, names, "pruner")
    elif axis.allocation not in ("uniform", "global"):
        checker.say("load.allocation", f"channels are pruned by 'uniform' or 'global', got {axis.allocation!r}")
    elif axis.rewind is not None:
        checker.say("load.rewind", f"needs masks; '{axis.pruner}' makes smaller networks, which have no way back")
    if axis.schedule == "one-shot" and axis.rounds is not None:
        checker.say("load.rounds", "one-shot pruning has one round; set schedule = 'iterative' or 'gradual'")
    stops = [each for name, values in temperature.items() if _is_epochs(name) for each in values]
    shortest = min(stops, default=recipe.epochs if recipe else None)
    if axis.rewind is not None and given:
        checker.say("load.rewind", "needs the dense training; checkpoints have none")
    elif axis.rewind is not None and shortest is not None and axis.rewind > shortest:
        checker.say("load.rewind", f"{axis.rewind} lies beyond the shortest dense training, {shortest} epochs")
    return axis


def _discovered(checker: Checker, axis: LoadConfig, table: Mapping[str, Any], given: bool) -> None:
    """What cannot be said of networks that are discovered."""
    for name in ("allocation", "schedule", "rounds", "rewind"):
        if name in table:
            checker.say(f"load.{name}", f"means nothing where networks are discovered, got {table[name]!r}")
    if given:
        checker.say("load.pruner", f"'{DISCOVERED}' trains from fresh weights; checkpoints cannot take part")
    if axis.discover.too_short:
        checker.say("load.discover.settle", axis.discover.too_short)
    if "nu" in table.get("discover", {}):
        checker.say("load.discover.nu", "stands in load.nu")


def _is_epochs(name: str) -> bool:
    try:
        found = load(KNOBS, name, "knob")
    except UserError:
        return False  # it has been spoken of
    return isinstance(found, Knob) and found.name == "epochs"
