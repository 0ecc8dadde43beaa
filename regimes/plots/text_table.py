"""A table as it is shown, in Markdown and in a terminal; and where its numbers were measured."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from regimes.experiment.run_metadata import environment


@dataclass(frozen=True)
class TextTable:
    """A table: its first row is the header.

    Attributes:
        title: what was measured.
        rows: cells as they are shown.
        notes: lines below the table.
        facts: the numbers behind it, for machines.
    """

    title: str
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    facts: Any

    def markdown(self) -> str:
        """For a report."""
        head, *rows = self.rows
        lines = [f"**{self.title}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def text(self) -> str:
        """For a terminal."""
        wide = [max(len(row[column]) for row in self.rows) for column in range(len(self.rows[0]))]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) for row in self.rows]
        return "\n".join([self.title, *(f"  {row.rstrip()}" for row in rows), *(f"  {note}" for note in self.notes)])


def where() -> str:
    """Hardware and versions, in a line."""
    facts = environment()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "torchvision", "pyhessian"))
    for name in ("curvlinops-for-pytorch", "scipy"):
        with contextlib.suppress(PackageNotFoundError):
            versions += f", {name} {version(name)}"
    cores = f"{facts['cores']} core{'s' if facts['cores'] > 1 else ''}"
    return f"{facts['processor']}, {cores}; Python {facts['python']}, {versions}"


def finite(value: Any) -> Any:
    """The same nested value with None where a number is not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value
