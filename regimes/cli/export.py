"""``regimes export``: a record as one file for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import Grid
from regimes.errors import UserError


@report_user_errors
def export(
    grid: Grid,
    to: Annotated[str, typer.Option("--to", help="nc (netCDF-4) or csv (one row per value).")] = "nc",
    out: Annotated[Path | None, typer.Option("--out", help="Output file (default: NAME.nc, NAME.csv).")] = None,
) -> None:
    """Write everything measured so far to one file."""
    from regimes.record.assemble import open_record
    from regimes.record.export import export as write
    from regimes.record.grid import load_netcdf

    data = open_record(grid) if grid.is_dir() else load_netcdf(grid)
    file = out or Path(f"{grid.resolve().name if grid.is_dir() else grid.stem}.{to}")
    if file.resolve() == grid.resolve():
        raise UserError(f"{file}: would overwrite the exported grid; choose another file with --out")
    write(data, file, to)
    typer.echo(f"wrote {file}")
