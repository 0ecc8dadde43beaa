"""What the commands that ask a map print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from regimes.errors import UserError


def positions(given: list[str], option: str = "--at") -> dict[str, float]:
    """{name: value} of ``epochs=160`` or ``epochs=160,density=0.05``, given once or more often.

    Raises:
        UserError: no NAME=NUMBER, or a name twice.
    """
    found: dict[str, float] = {}
    for part in (each.strip() for text in given for each in text.split(",")):
        name, equals, text = part.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not equals or value != value:
            raise UserError(f"{option} {part}: allowed: KNOB=NUMBER, e.g. {option} epochs=160")
        if name in found:
            raise UserError(f"{option}: '{name}' stands there twice")
        found[name] = value
    return found


def show_advice(
    grid: Path, density: float, at: list[str], adviser: str | None, lmc: float | None, cka: float | None, as_json: bool
) -> None:
    """Print which way to turn."""
    from regimes.regime_map.regime_map import RegimeMap

    found = RegimeMap.open(grid, lmc=lmc, cka=cka).advise(density, positions(at), adviser)
    if as_json:
        typer.echo(json.dumps(found.facts(), indent=1))
        return
    to = "" if found.direction == "stay" else f": to {_words(found.target)}"
    typer.echo(f"{found.direction}{to}   (density {density:g}, by '{found.adviser}', {found.confidence:.0%} sure)")
    typer.echo(f"  here    {_told(found.evidence['here'])}")
    if found.direction != "stay":
        typer.echo(f"  target  {_told(found.evidence['target'])}")
    _say(found.notes)


def show_choice(
    grid: Path,
    density: float,
    at: list[str],
    adviser: str | None,
    lmc: float | None,
    cka: float | None,
    as_json: bool,
    rho: bool,
) -> None:
    """Print which temperature to prune, or which radius to train with, and every candidate."""
    from regimes.regime_map.regime_map import RegimeMap

    chart = RegimeMap.open(grid, lmc=lmc, cka=cka)
    found = (chart.sam_rho if rho else chart.select)(density, positions(at), adviser)
    if as_json:
        typer.echo(json.dumps(found.facts(), indent=1))
        return
    typer.echo(f"{_words(found.selected)}   (density {density:g}, by '{found.adviser}', {found.confidence:.0%} sure)")
    for row in sorted(found.candidates, key=lambda each: -each["chosen"]):
        typer.echo(f"  {row['chosen']:4.0%}  {_told(row)}")
    _say(found.notes)


def show_rungs(grid: Path, density: list[float], at: list[str], as_json: bool) -> None:
    """Print which densities can be trusted."""
    from regimes.regime_map.regime_map import RegimeMap

    found = RegimeMap.open(grid).rungs(density or None, positions(at))
    if as_json:
        typer.echo(json.dumps([each.facts() for each in found], indent=1))
        return
    for rung in found:
        typer.echo(f"  density {rung.density:<6g} {'trusted    ' if rung.trusted else 'not trusted'}  {rung.reason}")


def _told(row: Mapping[str, Any]) -> str:
    """One candidate in a line: where, what is measured there, which regimes."""
    knobs = {key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "chosen"}
    measures = [
        f"{name} {row[name]['value']:.3g} ({row[name]['low']:.3g} to {row[name]['high']:.3g})"
        for name in ("lmc", "cka", "test_error")
        if name in row
    ]
    regimes = ", ".join(f"{name} {share:.0%}" for name, share in row["regimes"].items() if share >= 0.005)
    return f"{_words(knobs):<20} {'  '.join(measures)}  regime {regimes}"


def _words(setting: Mapping[str, int | float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def _say(notes: tuple[str, ...]) -> None:
    for note in notes:
        typer.echo(f"  note: {note}")
