"""The commands that ask a map: which way, which network, which radius, which densities."""

from __future__ import annotations

from typing import Annotated

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import Adviser, At, CkaCut, Density, Grid, Json, LmcCut, app


@app.command()
@report_user_errors
def advise(
    grid: Grid,
    density: Density,
    at: At,
    adviser: Adviser = None,
    lmc: LmcCut = None,
    cka: CkaCut = None,
    as_json: Json = False,
) -> None:
    """Say which way to turn the temperature of networks that are to be pruned to a density."""
    from regimes.cli.answer import show_advice

    show_advice(grid, density, at, adviser, lmc, cka, as_json)


@app.command()
@report_user_errors
def select(
    grid: Grid,
    density: Density,
    at: At = [],  # noqa: B006 - typer's way to say that there may be none
    adviser: Adviser = None,
    lmc: LmcCut = None,
    cka: CkaCut = None,
    as_json: Json = False,
) -> None:
    """Say which network of a family that is trained already to prune to a density; --at settles some knobs."""
    from regimes.cli.answer import show_choice

    show_choice(grid, density, at, adviser, lmc, cka, as_json, rho=False)


@app.command(name="sam-rho")
@report_user_errors
def sam_rho(
    grid: Grid,
    density: Density,
    at: At = [],  # noqa: B006
    adviser: Adviser = None,
    lmc: LmcCut = None,
    cka: CkaCut = None,
    as_json: Json = False,
) -> None:
    """Say which radius of sharpness-aware minimisation to train with, for networks to be pruned to a density."""
    from regimes.cli.answer import show_choice

    show_choice(grid, density, at, adviser, lmc, cka, as_json, rho=True)


@app.command()
@report_user_errors
def rungs(
    grid: Grid,
    density: Annotated[list[float], typer.Option("--density", help="To judge; repeatable (default: measured).")] = [],  # noqa: B006
    at: At = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Say at which densities networks rank training settings as the full network does: the rungs of a search."""
    from regimes.cli.answer import show_rungs

    show_rungs(grid, density, at, as_json)
