"""Validation of ``[dense] checkpoints``: dense networks that are already trained, one for each temperature."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regimes.config.checkpoint_patterns import expand_pattern
from regimes.config.sweep import Checkpoint, DenseConfig
from regimes.config.validation import Checker
from regimes.errors import MAX_LINES, UserError
from regimes.knobs import KNOBS

KEY = "dense.checkpoints"


def check_checkpoints(
    checker: Checker, raw: Mapping[str, Any], folder: Path
) -> tuple[Mapping[str, Any], DenseConfig | None]:
    """Return the file with temperatures and seeds filled in from its checkpoints, and the checkpoints.

    Args:
        checker: collects the errors.
        raw: the parsed file.
        folder: the folder that relative checkpoint paths start from.
    """
    if "dense" not in raw:
        return raw, None
    for key in ("temperature", "dense_seeds"):
        if key in raw:
            checker.add_error(key, "already given by [dense] checkpoints; remove it here")
    dense: DenseConfig | None = checker.validate(DenseConfig, "dense", raw["dense"])
    problem = None
    try:
        dense = dense and DenseConfig(checkpoints=tuple(_files(dense.checkpoints, folder)))
        problem = None if dense is None else _problem(dense.checkpoints)
    except UserError as error:
        problem = str(error)
    if dense is None or problem is not None:
        if problem is not None:
            checker.add_error(KEY, problem)
        return {**raw, "temperature": {"epochs": [1]}, "dense_seeds": 1}, None  # no error is reported twice
    names = list(dense.checkpoints[0].knobs)
    axes = {name: list(dict.fromkeys(checkpoint.knobs[name] for checkpoint in dense.checkpoints)) for name in names}
    seeds = 1 + max(checkpoint.dense_seed for checkpoint in dense.checkpoints)
    places = Counter((one.dense_seed, *(one.knobs[name] for name in axes)) for one in dense.checkpoints)
    wrong = (each for each in itertools.product(range(seeds), *axes.values()) if places[each] != 1)
    for place in itertools.islice(wrong, MAX_LINES):  # there may be many more combinations than checkpoints
        where = ", ".join(f"{name} = {value}" for name, value in zip(("dense_seed", *axes), place, strict=True))
        checker.add_error(KEY, f"{places[place]} checkpoints for {where}; exactly one is required")
    placed = tuple(one.model_copy(update={"path": str(folder / one.path)}) for one in dense.checkpoints)
    return {**raw, "temperature": axes, "dense_seeds": seeds}, DenseConfig(checkpoints=placed)


def _files(checkpoints: tuple[Checkpoint, ...], folder: Path) -> Iterator[Checkpoint]:
    for each in checkpoints:
        yield from expand_pattern(each, folder) if "*" in each.path else [each]


def _problem(checkpoints: tuple[Checkpoint, ...]) -> str | None:
    names = {tuple(sorted(each.knobs)) for each in checkpoints}
    if len(names) > 1 or not next(iter(names)):
        return f"each checkpoint needs a path and values of the same knobs; knobs: {', '.join(KNOBS)}"
    if any(isinstance(value, (list, dict)) for each in checkpoints for value in each.knobs.values()):
        return "a knob takes a single value in each checkpoint, or a list where a * in path stands for it"
    seeds = sorted({each.dense_seed for each in checkpoints})
    if seeds != list(range(len(seeds))):
        return f"dense_seed must count 0, 1, 2, ...; got {', '.join(map(str, seeds[:5]))}"
    return None
