"""``python -m regimes.research hpo_benchmark``: record tables of trainings, and replay searches on them."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from regimes.cli.errors import report_user_errors
from regimes.errors import UserError
from regimes.experiment.environment import default_workers
from regimes.registry import lookup
from regimes.research.hpo_benchmark import RECORDINGS

app = typer.Typer(help=__doc__, no_args_is_help=True)
PROGRAM = "python -m regimes.research"
OBJECTIVES = ("full", "pruned")
RECORDING, PRUNED = "recording.nc", "pruned.nc"  # files of the tables
Name = Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(RECORDINGS)}.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the tables and pages (default: reports/hpo-NAME).")]


@app.command()
@report_user_errors
def record(
    name: Name,
    objective: Annotated[str, typer.Option(help="full: networks of several fidelities; pruned: pruned networks.")],
    out: Out = None,
    runs: Annotated[Path, typer.Option(help="Folder of the trainings; a recording is resumed there.")] = Path("runs"),
    settings: Annotated[int, typer.Option(min=0, help="Pruned: number of settings (0: as designed).")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Pruned: processes (0: one per core).")] = 0,
) -> None:
    """Train the settings of a recording and write their table, or complete it; its page tells what it costs."""
    from regimes.research.hpo_benchmark.pruned_page import pruned_page
    from regimes.research.hpo_benchmark.pruned_table import write_pruned
    from regimes.research.hpo_benchmark.record_pruned import record_pruned
    from regimes.research.hpo_benchmark.record_study import record_full

    _check_objective(objective)
    recording = lookup(RECORDINGS, name, "recording")
    folder, started = out or Path(f"reports/hpo-{recording.name}"), time.perf_counter()
    if objective == "full":
        page = record_full(recording, folder, runs, _progress)
        page.write(folder, _command(), (time.perf_counter() - started) / 60)
        return
    if settings > recording.settings:
        raise UserError(f"--settings {settings}: the recording has {recording.settings}; use at most as many")
    design = dataclasses.replace(recording.pruned, settings=settings or recording.pruned.settings)
    recording = dataclasses.replace(recording, pruned=design)
    processes = workers or default_workers()
    for data in record_pruned(recording, runs / f"pruned-{recording.name}", processes, _progress):
        write_pruned(data, folder / PRUNED)
        pruned_page(recording, data).write(folder, _command())


@app.command()
@report_user_errors
def compare(
    name: Name,
    out: Out = None,
    searches: Annotated[int, typer.Option(min=2, help="Replayed searches of each method, paired by seed.")] = 100,
    objective: Annotated[str, typer.Option(help="full, or pruned.")] = "full",
) -> None:
    """Replay the same search methods on a recording's table; write compare.md, or compare-pruned.md, beside it."""
    from regimes.research.hpo_benchmark.compare import compare
    from regimes.research.hpo_benchmark.compare_pruned import compare_pruned

    _check_objective(objective)
    recording = lookup(RECORDINGS, name, "recording")
    folder = out or Path(f"reports/hpo-{recording.name}")
    if objective == "full":
        page = compare(recording, folder / RECORDING, searches, _progress)
    else:
        page = compare_pruned(recording, folder / PRUNED, searches, _progress)
    typer.echo(page.text())
    page.write(folder, _command())


def _check_objective(objective: str) -> None:
    if objective not in OBJECTIVES:
        raise UserError(f"--objective {objective}: unknown; allowed: {', '.join(OBJECTIVES)}")


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _command() -> str:
    return " ".join([PROGRAM, *sys.argv[1:]])
