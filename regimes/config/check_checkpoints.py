"""Check ``[dense] checkpoints``: a temperature family that is trained already."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regimes.config.sweep import Checkpoint, DenseConfig
from regimes.config.validation import Checker
from regimes.knobs import KNOBS

KEY = "dense.checkpoints"


def family(checker: Checker, raw: Mapping[str, Any], folder: Path) -> tuple[Mapping[str, Any], DenseConfig | None]:
    """The checkpoints, and the file with the temperatures and seeds that they make filled in.

    Args:
        checker: notes the mistakes.
        raw: the parsed file.
        folder: beside which files are looked for.
    """
    if "dense" not in raw:
        return raw, None
    for key in ("temperature", "dense_seeds"):
        if key in raw:
            checker.say(key, "is told by [dense] checkpoints; leave it out")
    dense: DenseConfig | None = checker.table(DenseConfig, "dense", raw["dense"])
    mistake = None if dense is None else _mistake(dense.checkpoints)
    if dense is None or mistake is not None:
        if mistake is not None:
            checker.say(KEY, mistake)
        return {**raw, "temperature": {"epochs": [1]}, "dense_seeds": 1}, None  # so that no mistake is found twice
    names = list(dense.checkpoints[0].knobs)
    axes = {name: list(dict.fromkeys(each.knobs[name] for each in dense.checkpoints)) for name in names}
    seeds = 1 + max(each.dense_seed for each in dense.checkpoints)
    places = Counter((each.dense_seed, *(each.knobs[name] for name in axes)) for each in dense.checkpoints)
    for place in itertools.product(range(seeds), *axes.values()):
        if places[place] != 1:
            where = ", ".join(f"{name} = {value}" for name, value in zip(("dense_seed", *axes), place, strict=True))
            checker.say(KEY, f"{places[place]} networks for {where}; each place needs one")
    placed = tuple(each.model_copy(update={"path": str(folder / each.path)}) for each in dense.checkpoints)
    return {**raw, "temperature": axes, "dense_seeds": seeds}, DenseConfig(checkpoints=placed)


def _mistake(checkpoints: tuple[Checkpoint, ...]) -> str | None:
    names = {tuple(sorted(each.knobs)) for each in checkpoints}
    if len(names) > 1 or not next(iter(names)):
        return f"each needs a path and the same knobs with values; knobs: {', '.join(KNOBS)}"
    if any(isinstance(value, (list, dict)) for each in checkpoints for value in each.knobs.values()):
        return "a knob has one value in each checkpoint"
    seeds = sorted({each.dense_seed for each in checkpoints})
    if seeds != list(range(len(seeds))):
        return f"dense_seed counts 0, 1, 2, ...; got {', '.join(map(str, seeds[:5]))}"
    return None
