"""Draw a classified grid: phase diagram, one panel per metric, and the report page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure

from regimes.errors import UserError
from regimes.plots.metric_panel import panel, panel_names, with_excess
from regimes.plots.phase_diagram import phase_diagram
from regimes.plots.report import write_report
from regimes.regime_map.classify import check_classified
from regimes.regime_map.regime_map import RegimeMap

# The same data give the same files: no date, and no random ids in SVG.
REPRODUCIBLE_STYLE: Any = {"svg.hashsalt": "regimes", "svg.fonttype": "none", "font.family": "DejaVu Sans"}
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def draw_map(
    data: xr.Dataset, out: str | Path, facts: dict[str, Any] | None = None, mark: Mapping[str, float] | None = None
) -> list[Path]:
    """Draw the phase diagram, all metric panels and the report page of a classified grid, and return the files.

    Args:
        data: a grid with ``regime``, as returned by `classify`.
        out: output folder, created if missing.
        facts: information about the run for the report page, see `run_facts`.
        mark: {knob: value, "density": value} of a setting to mark in the phase diagram.

    Raises:
        UserError: the grid is not classified, the folder cannot be written, or the mark is not a setting of the grid.
        OutsideRange: the mark is outside the measured range.
    """
    check_classified(data)
    return draw_classified(data, map_of(data), out, facts, mark)


def draw_classified(
    data: xr.Dataset,
    chart: RegimeMap | None,
    out: str | Path,
    facts: dict[str, Any] | None = None,
    mark: Mapping[str, float] | None = None,
) -> list[Path]:
    """Draw a classified grid with its map; otherwise as `draw_map`."""
    data, out = with_excess(data), Path(out)
    if mark and chart is None:
        raise UserError("--mark needs a rule with cuts and at least one usable cell")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(REPRODUCIBLE_STYLE):
            files = save(phase_diagram(data, chart, mark), out / "phase", ("png", "svg", "pdf"))
            for name in panel_names(data):
                files += save(panel(data, name), out / name, ("png", "svg"))
        return [*files, write_report(data, out, facts or {})]
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error


def map_of(data: xr.Dataset) -> RegimeMap | None:
    """Return the map of a classified grid; None if its rule has no cuts or no cell is usable."""
    try:
        return RegimeMap.of(data)
    except UserError:
        return None


def save(figure: Figure, stem: Path, formats: Iterable[str]) -> list[Path]:
    """Save a figure in several formats, and return the files; its layout is computed once and kept."""
    files = [stem.with_name(f"{stem.name}.{each}") for each in formats]
    for file in files:
        figure.savefig(file, dpi=160, metadata=METADATA[file.suffix[1:]])
        figure.set_layout_engine("none")  # computing the layout takes as long as drawing
    return files
