"""Validation helpers that collect errors, one line each, and continue."""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from regimes.errors import UserError
from regimes.registry import Registry, lookup, nearest, options_of, types_of

# Limits of a description, checked before anything else. They are far above any use, e.g. 20,000 values are a list of
# 6,000 checkpoints; a description within them is read in less than a second.
MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
MAX_KEYS = 200  # in one table
MAX_DEPTH = 20
MAX_TEXT = 4_096


def parse_toml(content: bytes, source: str) -> dict[str, Any]:
    """Parse the content of a TOML file.

    Raises:
        TOMLDecodeError: it is not valid TOML.
        UserError: it is longer than `MAX_BYTES`, not UTF-8, nested too deeply, or has an integer of 5,000 digits.
    """
    if len(content) > MAX_BYTES:
        raise UserError(f"{source}: more than {MAX_BYTES:,} bytes, the limit of a description")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise UserError(f"{source}: not valid TOML: nested too deeply") from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # not UTF-8, or an integer of more digits than Python converts
        raise UserError(f"{source}: not valid TOML: {error}") from error


def check_plain(raw: Mapping[str, Any], source: str) -> None:
    """Refuse what no description contains, before its values are copied, compared or counted.

    Allowed are numbers, strings, booleans, lists and tables of those: finite numbers, integers of 64 bits, printable
    strings of at most `MAX_TEXT` characters; at most `MAX_KEYS` keys in a table, `MAX_DEPTH` nested lists and tables,
    and `MAX_VALUES` values in all.

    Raises:
        UserError: one line for each value that is not allowed, or one line that there are too many.
    """
    found = list(itertools.islice(_values(raw, "", 0), MAX_VALUES + 1))
    if len(found) > MAX_VALUES:
        raise UserError(f"{source}: more than {MAX_VALUES:,} values, the limit of a description")
    UserError.collect(f"{source}: {key}: {problem}" for key, problem in found if problem)


def _values(value: Any, key: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield the key of every value, and what is wrong with it."""
    yield key, _problem(value, depth)
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, each in value.items():
            where = f"{key}.{name}" if key else str(name)
            if not str(name).isprintable() or len(str(name)) > MAX_TEXT:
                yield where, "not a printable key"
            yield from _values(each, where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _values(each, key, depth + 1)


def _problem(value: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        return f"nested too deeply; allowed: {MAX_DEPTH} lists and tables in one another"
    if value is None or isinstance(value, (bool, list, tuple)):  # None: from Python, TOML has none
        return ""
    if isinstance(value, Mapping):
        return f"a table of {len(value):,} keys; allowed: {MAX_KEYS}" if len(value) > MAX_KEYS else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} is not a finite number"
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**63 else f"an integer of {value.bit_length()} bits; allowed: 64"
    if not isinstance(value, str):
        return f"must be a number, string, boolean or a list of those, got {value}"
    if len(value) > MAX_TEXT:
        return f"a string of {len(value):,} characters; allowed: {MAX_TEXT:,}"
    return "" if value.isprintable() else f"must be printable, without control characters, got {value!r}"


def duplicates(values: Iterable[Any]) -> list[Any]:
    """Return the values that occur more than once in a list of plain values or of lists."""
    counts = Counter(tuple(each) if isinstance(each, list) else each for each in values)
    return [list(each) if isinstance(each, tuple) else each for each, count in counts.items() if count > 1]


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
        """Check that a file is plain data (see `check_plain`), and its top-level keys.

        Raises:
            UserError: it is not plain data.
        """
        check_plain(raw, self.source)
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
        return self._validated(lambda: TypeAdapter(kind).validate_python(values), kind, key)

    def _validated(self, validate: Callable[[], Any], kind: Any, key: str) -> Any:
        try:
            return validate()
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

    def check_options(self, key: str, options: Mapping[str, Any], function: Any, given: Iterable[str]) -> None:
        """Check the names and types of a function's options; ``given`` are the arguments that are no options.

        Types are those of annotations, or of defaults where there are none; a type that has no values in TOML is not
        checked. Nothing is converted: a boolean is no number and a string no boolean, but an integer may be a float.
        """
        allowed, required = options_of(function, given)
        for name in required:
            if name not in options:
                self.add_error(f"{key}.{name}", "missing; required by the function")
        types = types_of(function)
        for name, value in options.items():
            if allowed is not None and name not in allowed:
                self.add_error(
                    f"{key}.{name}", f"unknown key{nearest(name, allowed)}; allowed: {', '.join(('name', *allowed))}"
                )
            elif name in types:
                self.check_type(f"{key}.{name}", types[name], value)

    def check_type(self, key: str, kind: Any, value: Any) -> None:
        """Check the type of an option's value; see `check_options`."""
        try:
            adapter = TypeAdapter(kind, config=ConfigDict(strict=True))
        except Exception:  # a type that pydantic cannot validate, which a user's annotation may be
            return
        # As JSON: lists are also tuples and sequences, and strings also paths.
        self._validated(lambda: adapter.validate_json(json.dumps(value)), kind, key)

    def check_list(self, key: str, given: Any) -> list[Any]:
        """Check a list of distinct plain values; return [] if it is not a list of plain values."""
        if not isinstance(given, list) or not given:
            self.add_error(key, f"must be a list of at least one value, got {given!r}")
            return []
        wrong = [value for value in given if isinstance(value, (list, dict))]
        if wrong:
            self.add_error(key, f"must be a plain list of values, got {wrong[0]!r} in it")
            return []
        for value in duplicates(given):
            self.add_error(key, f"duplicate value {value!r}")
        return given
