"""The program and the arguments and options that its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="regimes",
    help="Where does a network prune well, and which way should its training knobs turn?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="What to sweep; see sweeps/.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, e.g. runs/digits.")]
Grid = Annotated[
    Path,
    typer.Argument(metavar="RUN|GRID.nc", help="A run's folder, or any netCDF grid with a knob, density, lmc, cka."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder (default: runs/NAME).")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes (default: one per core; 0: in this process).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Engine = Annotated[str | None, typer.Option(help="eager, stacked (default: the run's own, or the fastest here).")]
Precision = Annotated[
    str | None, typer.Option(help="Of training steps: float32, bfloat16 (default: the run's own, or float32).")
]
FailFast = Annotated[bool, typer.Option("--fail-fast/--keep-going", help="Stop at the first failed cell, or go on.")]
Mixed = Annotated[bool, typer.Option("--allow-mixed", help="Go on with a run that began with other numerics.")]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the file, recipe.epochs=20.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Rule = Annotated[str, typer.Option(help="How the thresholds are found.")]
LmcCut = Annotated[float | None, typer.Option("--lmc", help="Fix the LMC cut instead of finding it.")]
CkaCut = Annotated[float | None, typer.Option("--cka", help="Fix the CKA cut instead of finding it.")]
Density = Annotated[float, typer.Option("--density", help="Fraction of weights kept, e.g. 0.05.")]
At = Annotated[
    list[str],
    typer.Option("--at", metavar="KNOB=VALUE", help="Where on a knob: epochs=160; repeatable, or with commas."),
]
Adviser = Annotated[
    str | None,
    typer.Option(help="barrier, regime, similarity, combined, fitted, error, joint (default: by what is measured)."),
]
Mark = Annotated[
    list[str], typer.Option("--mark", metavar="KNOB=VALUE,...", help="Mark a setting: epochs=160,density=0.05.")
]
