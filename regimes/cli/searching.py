"""The command that searches hyperparameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import Device, Json, Set, app


@app.command()
@report_user_errors
def hpo(
    file: Annotated[Path, typer.Argument(metavar="HPO.toml", help="What to search; see sweeps/digits-hpo.toml.")],
    chart: Annotated[Path | None, typer.Option("--map", metavar="RUN|GRID.nc", help="The map to ask.")] = None,
    storage: Annotated[str | None, typer.Option(help="Of the study: FILE.log, sqlite:///..., postgresql://...")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="In all, earlier ones included.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds from which no trial is trained on; a map is made whole.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results (default: runs/NAME).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on one study, each on one core.")] = 1,
    device: Device = "cpu",
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Do trials again that another machine holds, which is gone.")
    ] = False,
    changes: Set = [],  # noqa: B006 - typer's way to say that there may be none
    as_json: Json = False,
) -> None:
    """Search hyperparameters on small proxies that the map trusts. Resumes where it stopped."""
    from regimes.cli.hpo import show_hpo

    show_hpo(file, changes, trials, out, chart, storage, timeout, workers, device, take_over, as_json)
