"""The ``regimes`` program and its commands, one file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import regimes
from regimes.cli.advise import advise
from regimes.cli.clean import clean
from regimes.cli.diagnose import diagnose
from regimes.cli.discover import discover
from regimes.cli.export import export
from regimes.cli.hpo import hpo
from regimes.cli.map import map_
from regimes.cli.measure import measure
from regimes.cli.new import new
from regimes.cli.plan import plan
from regimes.cli.run import run
from regimes.cli.status import status

COMMANDS: dict[str, Callable[..., None]] = {
    "new": new,
    "plan": plan,
    "run": run,
    "status": status,
    "clean": clean,
    "export": export,
    "map": map_,
    "advise": advise,
    "diagnose": diagnose,
    "measure": measure,
    "discover": discover,
    "hpo": hpo,
}

app = typer.Typer(
    name="regimes",
    help="Find where a network prunes well, and which way to turn its training knobs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, command in COMMANDS.items():
    app.command(name=name)(command)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"regimes {regimes.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find where a network prunes well, and which way to turn its training knobs."""
