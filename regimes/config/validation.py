"""Validation helpers that collect errors, one line each, and continue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from regimes.errors import UserError
from regimes.registry import Registry, lookup, nearest


class Checker:
    """Collector of the errors of one file.

    Attributes:
        source: the file's name in error messages.
        errors: error messages, one line each.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.errors: list[str] = []

    def add_error(self, key: str, text: str) -> None:
        """Add the error message of a key."""
        self.errors.append(f"{self.source}: {key}: {text}")

    def check_names(self, raw: Mapping[str, Any], allowed: Sequence[str]) -> None:
        """Check the file's top-level keys."""
        for key in raw:
            if key not in allowed:
                self.add_error(key, f"unknown key{nearest(key, allowed)}; allowed: {', '.join(allowed)}")

    def check_tables(
        self, raw: Mapping[str, Any], tables: Sequence[str], required: Sequence[str], what: str
    ) -> Mapping[str, Any]:
        """Check that required tables exist and tables are tables; return the file with invalid ones emptied."""
        for key in required:
            if key not in raw:
                self.add_error(key, f"missing; {what} needs the tables {', '.join(required)}")
        for key in tables:
            if key in raw and not isinstance(raw[key], Mapping):
                self.add_error(key, f"must be a table [{key}], got {raw[key]!r}")
                raw = {**raw, key: {}}
        return raw

    def validate(self, kind: Any, key: str, values: Any) -> Any:
        """Validate values against a pydantic type; return None after an error."""
        try:
            return TypeAdapter(kind).validate_python(values)
        except ValidationError as error:
            fields = list(getattr(kind, "model_fields", {}))
            for problem in error.errors():
                where = ".".join(str(part) for part in (key, *problem["loc"]) if str(part) != "")
                if problem["type"] == "extra_forbidden":
                    name = str(problem["loc"][-1])
                    self.add_error(where, f"unknown key{nearest(name, fields)}; allowed: {', '.join(fields)}")
                elif problem["type"] == "missing":
                    self.add_error(where, "missing")
                else:
                    message = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
                    self.add_error(where, f"{message}, got {problem['input']!r}")
            return None

    def resolve_name(self, key: str, name: str, registry: Registry, what: str, kind: type | None = None) -> Any:
        """Return the object behind a name, which must be of a kind (None: any callable); None after an error."""
        try:
            found = lookup(registry, name, what)
        except UserError as error:
            self.add_error(key, str(error))
            return None
        if isinstance(found, kind) if kind else callable(found):
            return found
        wanted = f"a {kind.__name__}" if kind else "a function"
        self.add_error(key, f"'{name}' is a {type(found).__name__}; expected {wanted}")
        return None

    def check_options(
        self, key: str, options: Mapping[str, Any], allowed: list[str] | None, required: list[str]
    ) -> None:
        """Check the options of a function; ``allowed`` is None if it takes any."""
        for name in required:
            if name not in options:
                self.add_error(f"{key}.{name}", "missing; required by the function")
        for name, value in options.items():
            self.check_plain(f"{key}.{name}", value)
        if allowed is None:
            return
        for name in options:
            if name not in allowed:
                self.add_error(
                    f"{key}.{name}", f"unknown key{nearest(name, allowed)}; allowed: {', '.join(('name', *allowed))}"
                )

    def check_plain(self, key: str, value: Any) -> None:
        """Check that an option can go into a content key: plain data, finite numbers, no dates."""
        if isinstance(value, float) and not math.isfinite(value):
            self.add_error(key, f"{value} is not a finite number")
        elif isinstance(value, (list, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                self.check_plain(key, item)
        elif not isinstance(value, (bool, int, float, str)):
            self.add_error(key, f"must be a number, string, boolean or a list of those, got {value}")

    def check_list(self, key: str, given: Any) -> list[Any]:
        """Check a list of distinct plain values; return [] if it is not a list of plain values."""
        if not isinstance(given, list) or not given:
            self.add_error(key, f"must be a list of at least one value, got {given!r}")
            return []
        wrong = [value for value in given if isinstance(value, (list, dict))]
        if wrong:
            self.add_error(key, f"must be a plain list of values, got {wrong[0]!r} in it")
            return []
        for value in dict.fromkeys(value for value in given if given.count(value) > 1):
            self.add_error(key, f"duplicate value {value!r}")
        return given
