"""Paths with ``*`` in ``[dense] checkpoints``: one entry for many files, by the numbers in their names."""

from __future__ import annotations

import glob
import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from regimes.config.sweep import Checkpoint
from regimes.errors import UserError

SHOWN = 4  # names of files in a message


def expand_pattern(entry: Checkpoint, folder: Path) -> list[Checkpoint]:
    """Return one checkpoint for each file that an entry's path matches; ``*`` is any text within a name.

    A knob with a list of values takes them from the first ``*`` that stands for exactly these numbers. The files of one
    setting are its dense seeds 0, 1, 2, ..., in natural order (9 before 10).

    Raises:
        UserError: no file matches, no ``*`` stands for a knob's values, or the settings have different numbers of
            files.
    """
    found = matching_files(folder / entry.path)
    if not found:
        raise UserError(f"no file matches '{entry.path}'")
    if "dense_seed" in entry.model_fields_set:
        raise UserError(f"'{entry.path}': the files of a setting are its dense seeds; remove dense_seed")
    lists = {name: list(value) for name, value in entry.knobs.items() if isinstance(value, (list, tuple))}
    texts = {file: _texts(file, folder / entry.path) for file in found}
    places = {name: _place(name, values, texts, entry.path) for name, values in lists.items()}
    if (count := math.prod(map(len, lists.values()))) > len(found):
        raise UserError(f"'{entry.path}' matches {len(found)} files, fewer than the {count:,} settings in its lists")
    groups: dict[tuple[Any, ...], list[str]] = {each: [] for each in itertools.product(*lists.values())}
    for file in found:
        numbers = {name: _number(texts[file][place]) for name, place in places.items()}
        groups[tuple(next(v for v in values if v == numbers[name]) for name, values in lists.items())].append(file)
    if len({len(files) for files in groups.values()}) > 1:
        counts = ", ".join(f"{len(files)} with {_words(lists, setting)}" for setting, files in groups.items())
        raise UserError(f"'{entry.path}' matches {counts}; every setting needs equally many files (dense seeds)")
    return [
        Checkpoint(**{**entry.knobs, **dict(zip(lists, setting, strict=True)), "path": file, "dense_seed": seed})
        for setting, files in groups.items()
        for seed, file in enumerate(files)
    ]


def matching_files(pattern: Path) -> list[str]:
    """Return the files that match a path with ``*``, in natural order; other characters stand for themselves."""
    escaped = glob.escape(str(pattern)).replace("[*]", "*")
    return sorted((each for each in glob.glob(escaped) if Path(each).is_file()), key=natural)


def natural(text: str) -> list[tuple[float, str]]:
    """Return a sort key by which numbers in a text are ordered by value."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(float(part), "") if number % 2 else (-1.0, part) for number, part in enumerate(parts)]


def _texts(file: str, pattern: Path) -> tuple[str, ...]:
    """The text that each ``*`` stands for in a file's path."""
    found = re.fullmatch("([^/]*)".join(re.escape(part) for part in str(pattern).split("*")), file)
    return found.groups() if found else ()


def _place(name: str, values: list[Any], texts: dict[str, tuple[str, ...]], path: str) -> int:
    """The position of the ``*`` that stands for a knob's values."""
    if not values or not all(isinstance(value, (int, float)) for value in values):
        raise UserError(f"'{path}': {name} needs numbers, got {values}")
    columns = [list(dict.fromkeys(column)) for column in zip(*texts.values(), strict=True)]
    for number, column in enumerate(columns):
        if {_number(each) for each in column} == set(values) and len(set(values)) == len(values):
            return number
    stands = "; ".join(_few(column) for column in columns)
    raise UserError(f"'{path}': no * stands for {name} = {values}, but for {stands}; write an entry for each value")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:SHOWN]) + (f", ... ({len(shown)})" if len(shown) > SHOWN else "")


def _words(lists: dict[str, list[Any]], setting: tuple[Any, ...]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in zip(lists, setting, strict=True))
