"""The commands that sweep, look and draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import (
    CkaCut,
    Device,
    Engine,
    FailFast,
    Grid,
    Json,
    LmcCut,
    Mark,
    Mixed,
    Out,
    Precision,
    Rule,
    Run,
    Set,
    SweepFile,
    Workers,
    app,
)


@app.command()
@report_user_errors
def plan(
    sweep: SweepFile,
    out: Out = None,
    workers: Workers = None,
    device: Device = "cpu",
    engine: Engine = None,
    precision: Precision = None,
    changes: Set = [],  # noqa: B006 - typer's way to say that there may be none
    as_json: Json = False,
) -> None:
    """Say what a sweep would do: cells, trainings, what is done already, time and disk."""
    from regimes.cli.show import show_plan

    show_plan(sweep, out, workers, device, engine, precision, changes, as_json)


@app.command()
@report_user_errors
def run(
    sweep: SweepFile,
    out: Out = None,
    workers: Workers = None,
    device: Device = "cpu",
    engine: Engine = None,
    precision: Precision = None,
    changes: Set = [],  # noqa: B006
    fail_fast: FailFast = False,
    allow_mixed: Mixed = False,
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive", help="Cells where the map is uncertain, a few at a time, until it is known."),
    ] = False,
    budget: Annotated[
        int | None, typer.Option(min=1, help="With --adaptive: cells after which to stop in any case.")
    ] = None,
) -> None:
    """Run a sweep, or finish it: what is done is never done again."""
    from regimes.cli.watch import run_rounds, run_watched

    where = {"workers": workers, "device": device, "engine": engine, "precision": precision, "changes": changes}
    how = {**where, "fail_fast": fail_fast, "allow_mixed": allow_mixed}
    if adaptive or budget is not None:
        run_rounds(sweep, out, budget, adaptive, how)
    else:
        run_watched(sweep, out, **how)


@app.command()
@report_user_errors
def status(run: Run, as_json: Json = False) -> None:
    """Say how far a run is: stages done, pending, failed and why, damaged files."""
    from regimes.cli.show import show_status

    show_status(run, as_json)


@app.command()
@report_user_errors
def retry(
    run: Run, workers: Workers = None, device: Device = "cpu", fail_fast: FailFast = False, allow_mixed: Mixed = False
) -> None:
    """Do a run's failed cells again."""
    from regimes.cli.watch import retry_watched

    retry_watched(run, workers=workers, device=device, fail_fast=fail_fast, allow_mixed=allow_mixed)


@app.command()
@report_user_errors
def clean(run: Run) -> None:
    """Remove weights that no pending stage needs; a grown sweep makes them again where it must."""
    from regimes.cli.show import show_clean

    show_clean(run)


@app.command()
@report_user_errors
def export(
    grid: Grid,
    to: Annotated[str, typer.Option("--to", help="nc (netCDF-4) or csv (a row for every value).")] = "nc",
    out: Annotated[Path | None, typer.Option("--out", help="The file to write (default: NAME.nc, NAME.csv).")] = None,
) -> None:
    """Write everything measured so far as one file for other tools."""
    from regimes.cli.show import show_export

    show_export(grid, to, out)


@app.command()
@report_user_errors
def classify(
    grid: Grid,
    out: Annotated[Path, typer.Option("--out", help="The netCDF file to write.")],
    rule: Rule = "smooth",
    lmc: LmcCut = None,
    cka: CkaCut = None,
) -> None:
    """Label every cell with its regime: thresholds found in the data, or given."""
    from regimes.cli.show import show_classify

    show_classify(grid, out, rule, lmc, cka)


@app.command(name="map")
@report_user_errors
def map_(
    grid: Grid,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for figures and report (default: RUN/map).")] = None,
    rule: Rule = "smooth",
    lmc: LmcCut = None,
    cka: CkaCut = None,
    mark: Mark = [],  # noqa: B006
) -> None:
    """Draw the phase diagram (PNG, SVG, PDF), one panel a metric, and a report page."""
    from regimes.cli.show import show_map

    show_map(grid, out, rule, lmc, cka, mark)


@app.command()
@report_user_errors
def page(
    grid: Grid,
    out: Annotated[Path | None, typer.Option("--out", help="The HTML file (default: RUN/page.html).")] = None,
    rule: Rule = "smooth",
    lmc: LmcCut = None,
    cka: CkaCut = None,
) -> None:
    """Write one self-contained HTML page: point at a cell and see all its numbers and its curve."""
    from regimes.cli.show import show_page

    show_page(grid, out, rule, lmc, cka)


@app.command()
@report_user_errors
def discover(
    file: Annotated[Path, typer.Argument(metavar="DISCOVER.toml", help="What to train; see sweeps/.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results (default: runs/NAME).")] = None,
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Trainings at once, each on one core.")] = 1,
    changes: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Find smaller networks: units and layers leave while they train. Resumes where it stopped."""
    from regimes.cli.discover import show_discover

    show_discover(file, out, device, workers, changes, as_json)


@app.command()
@report_user_errors
def measure(
    files: Annotated[list[Path], typer.Argument(metavar="A.pt [B.pt ...]", help="State dicts of one architecture.")],
    model: Annotated[str, typer.Option(help="The model's name, or module:function.")],
    data: Annotated[str, typer.Option(help="The data set's name, or module:function.")],
    metrics: Annotated[str, typer.Option(help="Names with commas (default: error, lmc, cka, hessian_trace).")] = "",
    changes: Set = [],  # noqa: B006
    dense: Annotated[bool, typer.Option("--dense", help="Count weights that are exactly 0 as well.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure the landscape of networks of your own: --set model.depth=20, --set measure.hessian.images=1000."""
    from regimes.cli.measure import show_measure

    show_measure(files, model, data, metrics, changes, dense, device, as_json)
