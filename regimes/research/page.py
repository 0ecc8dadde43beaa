"""Report of a study or a benchmark: text, tables, figures, and the numbers behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regimes.experiment.environment import environment
from regimes.plots.text_table import TextTable, finite, hardware_and_versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Say = Callable[[str], None]
ROUNDS_NOTE = "Medians over the rounds; ratios with the least and greatest round; other numbers ± their deviation."


@dataclass(frozen=True)
class Page:
    """Report of a study or a benchmark.

    Attributes:
        name: name of the study or benchmark.
        title: heading.
        paragraphs: Markdown paragraphs above the tables.
        tables: the tables.
        figures: {file name without extension: figure}.
        facts: further numbers, for the JSON file of a study.
        failed: whether a benchmark found a fault; its command then exits with 1.
        kind: a "study" is written to README.md and study.json, a "bench" to NAME.md and NAME.json.
    """

    name: str
    title: str
    paragraphs: Sequence[str]
    tables: Sequence[TextTable]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Any = None
    kind: Literal["study", "bench"] = "study"
    failed: bool = False

    def text(self) -> str:
        """Return the tables as text for a terminal."""
        return "\n\n".join([self.title, *(table.text() for table in self.tables), hardware_and_versions()])

    def json(self) -> str:
        """Return the numbers as JSON; a benchmark's with notes and environment."""
        if self.kind == "study":
            sheets = [{"title": table.title, "facts": table.facts} for table in self.tables]
            return json.dumps(finite({"study": self.name, "sheets": sheets, "facts": self.facts}), indent=1)
        sheets = [{"title": table.title, "notes": list(table.notes), "facts": table.facts} for table in self.tables]
        return json.dumps(finite({"bench": self.name, "sheets": sheets, "environment": environment()}), indent=1)

    def write(self, folder: Path, command: str, minutes: float | None = None) -> list[Path]:
        """Write the page, its numbers and its figures into a folder.

        Args:
            folder: folder of the files; created if missing.
            command: command that made the page.
            minutes: duration of the command; None: not shown.

        Returns:
            The files: Markdown page, JSON file, figures.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stem = self.name if self.kind == "bench" else ""
        page, numbers = folder / f"{stem or 'README'}.md", folder / f"{stem or 'study'}.json"
        page.write_text(self._markdown(command, minutes), encoding="utf-8")
        numbers.write_text(self.json() + "\n", encoding="utf-8")
        return [page, numbers, *self._write_figures(folder)]

    def _markdown(self, command: str, minutes: float | None) -> str:
        lines = [f"# {self.title}", ""]
        if minutes is None:
            lines += [f"`{command}`", "", hardware_and_versions(), ""]
        else:
            took = f"{minutes:.0f} min" if minutes >= 1 else "under a minute"
            lines += [f"`{command}` ({took} on {hardware_and_versions()})", ""]
        lines += [line for paragraph in self.paragraphs for line in (paragraph, "")]
        lines += [line for name in self.figures for line in (f"![{name}]({name}.png)", "")]
        lines += [table.markdown() for table in self.tables]
        return "\n".join(lines).rstrip() + "\n"

    def _write_figures(self, folder: Path) -> list[Path]:
        if not self.figures:
            return []
        import matplotlib as mpl

        from regimes.plots.draw_map import REPRODUCIBLE_STYLE, save

        with mpl.rc_context(REPRODUCIBLE_STYLE):
            return [file for name, each in self.figures.items() for file in save(each, folder / name, ("png", "svg"))]


def benchmark_page(
    name: str,
    tables: Sequence[TextTable],
    figures: Mapping[str, Figure] | None = None,
    paragraphs: Sequence[str] = (ROUNDS_NOTE,),
) -> Page:
    """Return the report of a benchmark.

    Args:
        name: name of the benchmark.
        tables: its tables.
        figures: {file name without extension: figure}.
        paragraphs: Markdown paragraphs above the tables; default: what the numbers of a `RateTable` are.
    """
    return Page(name, f"Benchmark: {name}", paragraphs, tables, figures or {}, kind="bench")
