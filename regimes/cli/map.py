"""``regimes map``: classify a grid and draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.formatting import size
from regimes.cli.options import CkaCut, Grid, LmcCut, Mark, Rule, positions


@report_user_errors
def map_(
    grid: Grid,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: RUN/map).")] = None,
    rule: Rule = "transition",
    lmc: LmcCut = None,
    cka: CkaCut = None,
    mark: Mark = [],  # noqa: B006
    html: Annotated[
        bool, typer.Option("--html", help="Also write page.html, an interactive page (needs the extra 'page').")
    ] = False,
) -> None:
    """Classify every cell and draw the phase diagram (PNG, SVG, PDF), a panel per metric, and a report.

    The folder also gets grid.nc: the grid with the variables regime and regime_probability.
    """
    from regimes.plots.draw_map import draw_classified
    from regimes.plots.run_info import run_facts
    from regimes.record.grid import open_grid, save_grid
    from regimes.regime_map.regime_map import classify_and_map

    data, chart = classify_and_map(open_grid(grid), rule, lmc, cka, str(grid))
    folder = out or (grid / "map" if grid.is_dir() else grid.with_suffix("").with_name(f"{grid.stem}-map"))
    facts = run_facts(grid) if grid.is_dir() else None
    files = draw_classified(data, chart, folder, facts, positions(mark, "--mark"))
    save_grid(data, folder / "grid.nc")
    echo_regimes(data)
    typer.echo(f"wrote {len(files) + 1} files; see {folder / 'phase.png'} and {files[-1]}")
    if html:
        from regimes.plots.html_page import write_page

        page = write_page(data, folder / "page.html")
        typer.echo(f"wrote {page} ({size(page.stat().st_size)}); open it in a browser")


def echo_regimes(data: Any) -> None:
    """Print the thresholds of a classified grid and the number of cells in each regime."""
    from regimes.regime_map.classify import present

    for note in data["regime"].attrs["thresholds"].split("; "):
        typer.echo(note)
    cells = present(data).items()
    counts = ", ".join(f"{name}: {count} cells" if count else f"{name}: absent" for name, count in cells)
    unknown = int((data["regime"] == -1).sum())
    typer.echo(counts + (f", unknown: {unknown}" if unknown else ""))
