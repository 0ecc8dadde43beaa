"""Tables of text for Markdown reports and terminals; hardware and versions in one line."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from regimes.experiment.environment import environment


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        title: the title.
        rows: the cells; the first row is the header.
        notes: lines below the table.
        facts: the data behind the table, for JSON.
    """

    title: str
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    facts: Any

    def markdown(self) -> str:
        """Return the table in Markdown."""
        head, *rows = self.rows
        lines = [f"**{self.title}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def text(self) -> str:
        """Return the table as aligned plain text."""
        wide = [max(len(row[column]) for row in self.rows) for column in range(len(self.rows[0]))]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) for row in self.rows]
        return "\n".join([self.title, *(f"  {row.rstrip()}" for row in rows), *(f"  {note}" for note in self.notes)])


def hardware_and_versions() -> str:
    """Return hardware and package versions as one line of text."""
    facts = environment()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "torchvision", "pyhessian"))
    for name in ("curvlinops-for-pytorch", "scipy"):
        with contextlib.suppress(PackageNotFoundError):
            versions += f", {name} {version(name)}"
    cores = f"{facts['cores']} core{'s' if facts['cores'] > 1 else ''}"
    return f"{facts['processor']}, {cores}; Python {facts['python']}, {versions}"


def finite(value: Any) -> Any:
    """Return a nested value with None in place of NaN and infinity, which JSON does not allow."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value
