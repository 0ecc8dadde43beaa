"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regimes.errors import UserError

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="The sweep file; see sweeps/README.md.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, e.g. runs/digits.")]
Grid = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|GRID.nc",
        help="A run folder, or a netCDF grid with a knob, density, lmc and cka.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder (default: runs/NAME).")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Worker processes (default: one per core, or per CUDA device; 0: run in this process)."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Devices = Annotated[
    str,
    typer.Option("--device", help="cpu, cuda, cuda:1, ..., or several for the workers in turn: cuda:0,cuda:1."),
]
Lanes = Annotated[
    int | None,
    typer.Option(
        help="Networks trained at once by the engines stacked (rounded to a power of two) and graphed, at most 64 "
        "(default: the run's own, or the fastest found that fits into memory)."
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(help="Training engine: eager, stacked, graphed (default: the run's own, or the fastest found)."),
]
Precision = Annotated[
    str | None,
    typer.Option(help="Precision of training steps: float32, bfloat16 (default: float32)."),
]
FailFast = Annotated[bool, typer.Option("--fail-fast/--keep-going", help="Stop at the first failure, or continue.")]
Executor = Annotated[str, typer.Option(help="processes of this machine, or ray: workers of a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(help="With --executor ray: address of the cluster, e.g. auto (default: this machine).")
]
Gpus = Annotated[
    float | None, typer.Option(min=0, help="With --executor ray: GPUs of each worker, e.g. 0.25 (default: 1 on CUDA).")
]
StageTimeout = Annotated[
    float,
    typer.Option(
        min=1,
        metavar="SECONDS",
        show_default=False,
        help="Kill a worker that has had no result for so long, and try its work again, three times (default: never).",
    ),
]
Mixed = Annotated[bool, typer.Option("--allow-mixed", help="Resume a run although its numerics id differs.")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, e.g. recipe.epochs=20."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Rule = Annotated[str, typer.Option(help="Classification rule: transition, error, or module:function.")]
LmcCut = Annotated[float | None, typer.Option("--lmc", help="Fix the LMC threshold instead of estimating it.")]
CkaCut = Annotated[float | None, typer.Option("--cka", help="Fix the CKA threshold instead of estimating it.")]
Density = Annotated[float, typer.Option("--density", help="Fraction of weights kept, e.g. 0.05.")]
At = Annotated[
    list[str],
    typer.Option("--at", metavar="KNOB=VALUE", help="Position on a knob: epochs=160. Repeatable, or comma-separated."),
]
Adviser = Annotated[
    str | None,
    typer.Option(
        help="barrier, regime, similarity, combined, landscape, diagnosis, fitted, error, joint (default: joint with "
        "test errors, else landscape)."
    ),
]
Mark = Annotated[
    list[str],
    typer.Option("--mark", metavar="KNOB=VALUE,...", help="Mark a setting in the diagram: epochs=160,density=0.05."),
]


def positions(given: list[str], option: str = "--at") -> dict[str, float]:
    """Parse positions: ``epochs=160`` or ``epochs=160,density=0.05``, given once or repeatedly, as {name: value}.

    Raises:
        UserError: not NAME=NUMBER, or a name twice.
    """
    parsed: dict[str, float] = {}
    for part in (piece.strip() for text in given for piece in text.split(",")):
        name, equals, text = part.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not equals or value != value:
            raise UserError(f"{option} {part}: allowed: KNOB=NUMBER, e.g. {option} epochs=160")
        if name in parsed:
            raise UserError(f"{option}: '{name}' is given twice")
        parsed[name] = value
    return parsed
