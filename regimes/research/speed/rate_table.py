"""What a bench found, as text, Markdown and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from regimes.experiment.run_metadata import environment
from regimes.plots.text_table import TextTable, finite, where
from regimes.research.speed.harness import Timing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAID = "Medians over the rounds; ratios with the least and greatest round; other numbers ± their deviation."
EVERY_CORE = (
    "the first rows use every core, one single-threaded process each; a row that does not say so uses one process"
)


@dataclass(frozen=True)
class RateTable:
    """Arms side by side; the first is ours, and every ratio says how many times as fast it is.

    Attributes:
        title: the work.
        unit: of the rate; ``scale`` times units a second.
        timings: of the arms.
        checks: the numbers that arms have to agree in.
        notes: lines below the table.
        ours: how many of the first arms are ours; each has a column of ratios.
    """

    title: str
    unit: str
    scale: float
    timings: Sequence[Timing]
    checks: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)
    ours: int = 1

    def with_limit(self, limit: Mapping[str, float], cores: int) -> RateTable:
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

    def sheet(self) -> TextTable:
        """One row per arm: rate, how many times as fast ours are, checks."""
        ours = self.timings[: self.ours]
        rows = [["", self.unit, *(f"{timing.arm.name} is faster by" for timing in ours), *self.checks]]
        for timing in self.timings:
            ratios = ["" if timing is mine else _ratio(*timing.slower(mine)) for mine in ours]
            checks = [_spread(timing.check(name), timing.spread(name)) for name in self.checks]
            rows.append([timing.arm.name, f"{timing.rate * self.scale:.3g}", *ratios, *checks])
        arms = [
            {
                "name": timing.arm.name,
                "rates": [rate * self.scale for rate in timing.rates],
                "faster": [timing.slower(mine) for mine in ours],
                "checks": timing.checks,
            }
            for timing in self.timings
        ]
        return TextTable(self.title, rows, self.notes, {"title": self.title, "unit": self.unit, "arms": arms})


def _ratio(median: float, least: float, greatest: float) -> str:
    middle, low, high = (f"{each:.2g}" if each < 100 else f"{each:.0f}" for each in (median, least, greatest))
    return f"{middle}x ({low}-{high})"


def _spread(value: float, deviation: float) -> str:
    return f"{value:.4g} ± {deviation:.1g}" if math.isfinite(deviation) else f"{value:.4g}"


@dataclass(frozen=True)
class BenchmarkResult:
    """The sheets of one bench; where and with what they were measured is added when they are shown.

    Attributes:
        name: of the bench.
        sheets: its tables.
        figures: {file name without ending: figure}.
        words: paragraphs above the tables; none: what the numbers of a table are.
    """

    name: str
    sheets: Sequence[TextTable]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    words: Sequence[str] = ()

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join([*(sheet.text() for sheet in self.sheets), where()])

    def json(self) -> str:
        """For machines."""
        sheets = [{"title": sheet.title, "notes": list(sheet.notes), "facts": sheet.facts} for sheet in self.sheets]
        return json.dumps(finite({"bench": self.name, "sheets": sheets, "environment": environment()}), indent=1)

    def write(self, folder: Path, command: str) -> list[Path]:
        """Write NAME.md, NAME.json and the figures into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        page = [f"# Benchmark: {self.name}", "", f"`{command}`", "", where(), ""]
        page += [line for paragraph in self.words or (SAID,) for line in (paragraph, "")]
        page += [line for name in self.figures for line in (f"![{name}]({name}.png)", "")]
        page += [sheet.markdown() for sheet in self.sheets]
        files = [folder / f"{self.name}.md", folder / f"{self.name}.json"]
        files[0].write_text("\n".join(page))
        files[1].write_text(self.json() + "\n")
        return [*files, *self._drawn(folder)]

    def _drawn(self, folder: Path) -> list[Path]:
        if not self.figures:
            return []
        import matplotlib as mpl

        from regimes.plots.draw_map import STEADY, save

        with mpl.rc_context(STEADY):
            return [file for name, each in self.figures.items() for file in save(each, folder / name, ("png", "svg"))]
