"""``regimes diagnose``: hotter or colder, wider, more data, for checkpoints or for a cell of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import At, Device, Json, positions
from regimes.errors import UserError

if TYPE_CHECKING:
    from regimes.diagnosis.network_diagnosis import NetworkDiagnosis


@report_user_errors
def diagnose(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="A.pt [B.pt ...] | RUN | GRID.nc",
            help="State dicts of one setting (two seeds are better than one), or a run folder or netCDF grid.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Checkpoints: model name, or module:function.")] = "",
    data: Annotated[str, typer.Option(help="Checkpoints: data set name, or module:function.")] = "",
    changes: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Checkpoints: an option of model or data, model.depth=20."),
    ] = [],  # noqa: B006 - typer's way to declare an empty default
    curve: Annotated[
        bool, typer.Option("--curve", help="Checkpoints: also train a curve per pair (surer, takes longer).")
    ] = False,
    device: Device = "cpu",
    at: At = [],  # noqa: B006
    density: Annotated[float | None, typer.Option("--density", help="Run: fraction of weights kept.")] = None,
    as_json: Json = False,
) -> None:
    """Diagnose trained networks: temperature too high or too low, too small, too little data.

    Prints probabilities, how familiar the networks are, and the evidence: every measured value with its standard error,
    the learnt cut it is compared with, and by how much it changes the probabilities.
    """
    if len(files) == 1 and (files[0].is_dir() or files[0].suffix == ".nc" or density is not None):
        if model or data or changes or curve or device != "cpu":
            raise UserError("a run or grid takes --at, --density and --json only; checkpoints take --model and --data")
        result = _cell(files[0], at, density)
    else:
        if at or density is not None:
            raise UserError("--at and --density belong to a run folder or grid; checkpoints take --model and --data")
        result = _checkpoints(files, model, data, changes, curve, device)
    if as_json:
        typer.echo(json.dumps(result.facts(), indent=1))
    else:
        typer.echo(str(result))


def _cell(grid: Path, at: list[str], density: float | None) -> NetworkDiagnosis:
    from regimes.diagnosis.diagnose_cell import diagnose_cell
    from regimes.record.grid import open_grid

    if density is None:
        raise UserError("--density: the density of the networks is needed, e.g. --density 0.1 (1: not pruned)")
    return diagnose_cell(open_grid(grid), density, positions(at))


def _checkpoints(
    files: list[Path], model: str, data: str, changes: list[str], curve: bool, device: str
) -> NetworkDiagnosis:
    for option, value in (("--model", model), ("--data", data)):
        if not value:
            raise UserError(f"{option} is needed for checkpoints, e.g. --model preresnet --data cifar10")
    from regimes.cli.read_networks import expand_files, prepare_measurement, read_networks
    from regimes.diagnosis.diagnose_networks import diagnose as diagnose_networks
    from regimes.experiment.context import one_thread

    sweep, context = prepare_measurement(model, data, ["error"], changes, device, "diagnose")
    networks = read_networks(expand_files(files), context)
    with one_thread():
        return diagnose_networks(networks, context.data, curve=curve, loss_fn=sweep.recipe.loss_fn)
