"""What a study found, as one page: words, tables, figures, and the numbers behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from regimes.plots.draw_map import STEADY, save
from regimes.plots.text_table import TextTable, finite, where

Say = Callable[[str], None]


@dataclass(frozen=True)
class Page:
    """A study's page.

    Attributes:
        name: of the study.
        title: of the page.
        words: paragraphs, Markdown: what was asked, what was seen.
        sheets: tables.
        figures: {file name without ending: figure}.
        facts: numbers behind it all, for machines.
    """

    name: str
    title: str
    words: Sequence[str]
    sheets: Sequence[TextTable]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Any = None

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join([self.title, *(sheet.text() for sheet in self.sheets), where()])

    def write(self, folder: Path, command: str, minutes: float) -> list[Path]:
        """Write README.md, the figures and study.json into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        files: list[Path] = []
        with mpl.rc_context(STEADY):
            for name, figure in self.figures.items():
                files += save(figure, folder / name, ("png", "svg"))
        took = f"{minutes:.0f} min" if minutes >= 1 else "under a minute"
        lines = [f"# {self.title}", "", f"`{command}` ({took} on {where()})", ""]
        for paragraph in self.words:
            lines += [paragraph, ""]
        for name in self.figures:
            lines += [f"![{name}]({name}.png)", ""]
        lines += [sheet.markdown() for sheet in self.sheets]
        page, numbers = folder / "README.md", folder / "study.json"
        page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        facts = {"study": self.name, "sheets": [{"title": each.title, "facts": each.facts} for each in self.sheets]}
        numbers.write_text(json.dumps(finite({**facts, "facts": self.facts}), indent=1) + "\n")
        return [page, numbers, *files]
