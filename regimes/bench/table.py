"""What a bench found, as text, Markdown and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regimes.bench.arms import Timing
from regimes.flow.head import environment


@dataclass(frozen=True)
class Sheet:
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


@dataclass(frozen=True)
class Table:
    """Arms side by side; the first is ours, and every ratio says how many times as fast it is.

    Attributes:
        title: the work.
        unit: of the rate; ``scale`` times units a second.
        timings: of the arms.
        checks: the numbers that arms have to agree in.
        notes: lines below the table.
    """

    title: str
    unit: str
    scale: float
    timings: Sequence[Timing]
    checks: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)

    def with_limit(self, limit: Mapping[str, float], cores: int) -> Table:
        """The same table with what the machine could do at most, and the share of it that ours reaches."""
        images = limit["images_per_epoch"]
        flops, moved = limit["flops_per_image"] * images, limit["bytes_per_image"] * images
        lines = []
        for timing in self.timings:
            if not timing.arm.name.startswith("regimes"):
                continue
            precision = timing.arm.options.get("precision", "float32")
            rate = limit[f"flops_per_second_{precision}"] * cores
            share = timing.rate * flops / rate
            lines.append(
                f"{timing.arm.name}: {share:.0%} of the {precision} matrix rate measured here "
                f"({rate / 1e9:.0f} GFLOP/s on {cores} core{'s' * (cores != 1)}, {flops / 1e9:.0f} GFLOP an epoch)"
            )
        lines.append(
            f"an epoch's operations, each done on its own in float32, move {moved / 1e9:.0f} GB; "
            f"copying runs at {limit['bytes_per_second'] / 1e9:.1f} GB/s here on one core, caches not counted"
        )
        return dataclasses.replace(self, notes=(*self.notes, *lines))

    def sheet(self) -> Sheet:
        """One row per arm: rate, how many times as fast ours is, checks."""
        ours = self.timings[0]
        rows = [["", self.unit, f"{ours.arm.name} is faster by", *self.checks]]
        for timing in self.timings:
            ratio = "" if timing is ours else "{:.2g}x ({:.2g}-{:.2g})".format(*timing.slower(ours))
            checks = [f"{timing.check(name):.4g} ± {timing.spread(name):.1g}" for name in self.checks]
            rows.append([timing.arm.name, f"{timing.rate * self.scale:.3g}", ratio, *checks])
        arms = [
            {
                "name": timing.arm.name,
                "rates": [rate * self.scale for rate in timing.rates],
                "faster": None if timing is ours else timing.slower(ours),
                "checks": timing.checks,
            }
            for timing in self.timings
        ]
        notes = ["numbers behind the ratios: mean ± standard deviation over the rounds"] if self.checks else []
        return Sheet(self.title, rows, [*self.notes, *notes], {"title": self.title, "unit": self.unit, "arms": arms})


@dataclass(frozen=True)
class Bench:
    """The sheets of one bench; where and with what they were measured is added when they are shown."""

    name: str
    sheets: Sequence[Sheet]

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join([*(sheet.text() for sheet in self.sheets), _where()])

    def json(self) -> str:
        """For machines."""
        sheets = [{"title": sheet.title, "notes": list(sheet.notes), "facts": sheet.facts} for sheet in self.sheets]
        return json.dumps(_finite({"bench": self.name, "sheets": sheets, "environment": environment()}), indent=1)

    def write(self, folder: Path, command: str) -> list[Path]:
        """Write NAME.md and NAME.json into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        page = [f"# regimes bench {self.name}", "", f"`{command}`", "", _where(), ""]
        page += ["Rates are medians over the rounds, ratios medians with the least and greatest round.", ""]
        page += [sheet.markdown() for sheet in self.sheets]
        files = [folder / f"{self.name}.md", folder / f"{self.name}.json"]
        files[0].write_text("\n".join(page))
        files[1].write_text(self.json() + "\n")
        return files


def _where() -> str:
    facts = environment()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "torchvision", "pyhessian"))
    return f"{facts['processor']}, {facts['cores']} cores; Python {facts['python']}, {versions}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value
