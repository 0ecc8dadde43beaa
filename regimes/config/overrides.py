"""Command line overrides of configuration keys: ``--set recipe.epochs=20``."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from regimes.errors import UserError


def apply_overrides(raw: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a parsed file with some keys set.

    Args:
        raw: the parsed file; not modified.
        changes: ``key=value`` strings: dots separate tables, the value is TOML (``retrain_seeds=3``,
            ``temperature.epochs=[1, 2]``, ``data={name="digits"}``); a value that is not TOML is taken as a string.

    Raises:
        UserError: a change is not ``key=value``, or its key leads through something that is not a table.
    """
    found = copy.deepcopy(dict(raw))
    for change in changes:
        key, equals, text = change.partition("=")
        *tables, last = key.strip().split(".")
        if not equals or not last or not all(tables):
            raise UserError(f"--set {change}: allowed: KEY=VALUE, e.g. recipe.epochs=20 or 'load.density=[0.1, 0.5]'")
        place = found
        for name in tables:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {change}: '{name}' is not a table in this file")
        place[last] = _value(text.strip())
    return found


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
