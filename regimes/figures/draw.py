"""Draw a classified grid: phase diagram, one panel a metric, the report page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure

from regimes.errors import UserError
from regimes.figures.panel import panel, panel_names, with_excess
from regimes.figures.phase import phase_diagram
from regimes.figures.report import write_report

# Same data, same file: no date, no random ids in the SVG.
STEADY: Any = {"svg.hashsalt": "regimes", "svg.fonttype": "none", "font.family": "DejaVu Sans"}
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}


def draw_map(data: xr.Dataset, out: str | Path, facts: dict[str, Any] | None = None) -> list[Path]:
    """Draw everything there is to see of a classified grid into a folder; returns the files.

    Args:
        data: a grid with ``regime``, as `classify` returns it.
        out: folder; made if missing.
        facts: about the run, for the report page: sweep, hardware, versions, hours; see `run_facts`.

    Raises:
        UserError: the grid is not classified, or the folder cannot be written.
    """
    if "regime" not in data:
        raise UserError("this grid has no regimes yet; classify it first")
    data, out = with_excess(data), Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STEADY):
            files = save(phase_diagram(data), out / "phase", ("png", "svg"))
            for name in panel_names(data):
                files += save(panel(data, name), out / name, ("png", "svg"))
        return [*files, write_report(data, out, facts or {})]
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error


def save(figure: Figure, stem: Path, formats: Iterable[str]) -> list[Path]:
    """Save a figure in several formats."""
    files = [stem.with_name(f"{stem.name}.{each}") for each in formats]
    for file in files:
        figure.savefig(file, dpi=160, metadata=METADATA[file.suffix[1:]])
    return files
