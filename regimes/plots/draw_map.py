"""Draw a classified grid: phase diagram, one panel a metric, the report page."""

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
from regimes.regime_map.regime_map import RegimeMap

# Same data, same file: no date, no random ids in the SVG.
STEADY: Any = {"svg.hashsalt": "regimes", "svg.fonttype": "none", "font.family": "DejaVu Sans"}
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def draw_map(
    data: xr.Dataset, out: str | Path, facts: dict[str, Any] | None = None, mark: Mapping[str, float] | None = None
) -> list[Path]:
    """Draw everything there is to see of a classified grid into a folder; returns the files.

    Args:
        data: a grid with ``regime``, as `classify` returns it.
        out: folder; made if missing.
        facts: about the run, for the report page: sweep, hardware, versions, hours; see `run_facts`.
        mark: {knob: value, "density": value} of a setting to mark in the phase diagram.

    Raises:
        UserError: the grid is not classified, the folder cannot be written, or the mark is no setting of the grid.
        OutsideRange: the mark lies beyond the measured settings.
    """
    if "regime" not in data:
        raise UserError("this grid has no regimes yet; classify it first")
    data, out = with_excess(data), Path(out)
    chart = map_of(data)
    if mark and chart is None:
        raise UserError("--mark needs a map with cuts and at least one cell that tells something")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STEADY):
            files = save(phase_diagram(data, chart, mark), out / "phase", ("png", "svg", "pdf"))
            for name in panel_names(data):
                files += save(panel(data, name), out / name, ("png", "svg"))
        return [*files, write_report(data, out, facts or {})]
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error


def map_of(data: xr.Dataset) -> RegimeMap | None:
    """The map of a classified grid; None where its rule has no cuts, or no cell tells anything."""
    try:
        return RegimeMap.of(data)
    except UserError:
        return None


def save(figure: Figure, stem: Path, formats: Iterable[str]) -> list[Path]:
    """Save a figure in several formats."""
    files = [stem.with_name(f"{stem.name}.{each}") for each in formats]
    for file in files:
        figure.savefig(file, dpi=160, metadata=METADATA[file.suffix[1:]])
    return files
