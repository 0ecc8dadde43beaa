"""Command line overrides of configuration keys: ``--set recipe.epochs=20``."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from regimes.config.validation import parse_toml
from regimes.errors import UserError, one_line


def apply_overrides(raw: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a parsed file with some keys set.

    Args:
        raw: the parsed file; not modified.
        changes: ``key=value`` strings: dots separate tables, the value is TOML (``retrain_seeds=3``,
            ``temperature.epochs=[1, 2]``, ``data={name="digits"}``); a value that is not TOML is taken as a string.

    Raises:
        UserError: a change is not ``key=value``, its key leads through something that is not a table, or its value is
            too long or too deeply nested (see `parse_toml`).
    """
    found = dict(raw)
    for change in changes:
        key, equals, text = change.partition("=")
        shown = f"--set {one_line(change, 100)}"
        *tables, last = key.strip().split(".")
        if not equals or not last or not all(tables):
            raise UserError(f"{shown}: allowed: KEY=VALUE, e.g. recipe.epochs=20 or 'load.density=[0.1, 0.5]'")
        place = found
        for name in tables:
            inner = place.get(name, {})
            if not isinstance(inner, dict):
                raise UserError(f"{shown}: '{name}' is not a table in this file")
            place[name] = dict(inner)
            place = place[name]
        place[last] = _value(text.strip(), shown)
    return found


def _value(text: str, source: str) -> Any:
    try:
        parsed = parse_toml(f"value = {text}".encode(errors="surrogateescape"), source)
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text
