"""The tools of checking: each finds mistakes, notes them in a line, and lets the check go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from regimes.errors import UserError
from regimes.registry import Registry, load, nearest


class Checker:
    """Collects mistakes of one file.

    Attributes:
        source: the file, as every line names it.
        mistakes: a line each.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.mistakes: list[str] = []

    def say(self, key: str, text: str) -> None:
        self.mistakes.append(f"{self.source}: {key}: {text}")

    def names(self, raw: Mapping[str, Any], allowed: Sequence[str]) -> None:
        """Each key at the top of the file is one of those allowed."""
        for key in raw:
            if key not in allowed:
                self.say(key, f"unknown key{nearest(key, allowed)}; allowed: {', '.join(allowed)}")

    def tables(
        self, raw: Mapping[str, Any], tables: Sequence[str], required: Sequence[str], what: str
    ) -> Mapping[str, Any]:
        """The file with an empty table where something else than a table stands; what is required must be there."""
        for key in required:
            if key not in raw:
                self.say(key, f"missing; {what} needs the tables {', '.join(required)}")
        for key in tables:
            if key in raw and not isinstance(raw[key], Mapping):
                self.say(key, f"must be a table [{key}], got {raw[key]!r}")
                raw = {**raw, key: {}}
        return raw

    def table(self, kind: Any, key: str, values: Any) -> Any:
        """Validate values against a pydantic type; None after a mistake."""
        try:
            return TypeAdapter(kind).validate_python(values)
        except ValidationError as error:
            fields = list(getattr(kind, "model_fields", {}))
            for each in error.errors():
                where = ".".join(str(part) for part in (key, *each["loc"]) if str(part) != "")
                if each["type"] == "extra_forbidden":
                    name = str(each["loc"][-1])
                    self.say(where, f"unknown key{nearest(name, fields)}; allowed: {', '.join(fields)}")
                elif each["type"] == "missing":
                    self.say(where, "missing")
                else:
                    message = each["msg"].removeprefix("Input ").removeprefix("Value error, ")
                    self.say(where, f"{message}, got {each['input']!r}")
            return None

    def known(self, key: str, name: str, registry: Registry, what: str, kind: type | None = None) -> Any:
        """The object behind a name, of a kind (None: any function); None after a mistake."""
        try:
            found = load(registry, name, what)
        except UserError as error:
            self.say(key, str(error))
            return None
        if isinstance(found, kind) if kind else callable(found):
            return found
        wanted = f"a {kind.__name__}" if kind else "a function"
        self.say(key, f"'{name}' is a {type(found).__name__}; {wanted} is expected")
        return None

    def options(self, key: str, options: Mapping[str, Any], allowed: list[str] | None, required: list[str]) -> None:
        for name in required:
            if name not in options:
                self.say(f"{key}.{name}", "missing; the function requires it")
        for name, value in options.items():
            self.plain_value(f"{key}.{name}", value)
        if allowed is None:
            return
        for name in options:
            if name not in allowed:
                self.say(
                    f"{key}.{name}", f"unknown key{nearest(name, allowed)}; allowed: {', '.join(('name', *allowed))}"
                )

    def plain_value(self, key: str, value: Any) -> None:
        """An option goes into the key: numbers have to be finite, and dates mean nothing here."""
        if isinstance(value, float) and not math.isfinite(value):
            self.say(key, f"{value} is no finite number")
        elif isinstance(value, (list, dict)):
            for each in value.values() if isinstance(value, dict) else value:
                self.plain_value(key, each)
        elif not isinstance(value, (bool, int, float, str)):
            self.say(key, f"{value} is neither a number, a text, true or false, nor a list of those")

    def axis(self, key: str, given: Any) -> list[Any]:
        if not isinstance(given, list) or not given:
            self.say(key, f"must be a list of at least one value, got {given!r}")
            return []
        wrong = [each for each in given if isinstance(each, (list, dict))]
        if wrong:
            self.say(key, f"must be a plain list of values, got {wrong[0]!r} in it")
            return []
        for value in dict.fromkeys(each for each in given if given.count(each) > 1):
            self.say(key, f"{value!r} stands there {given.count(value)} times; once is enough")
        return given
