"""``regimes advise``: answers of a regime map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import Adviser, At, CkaCut, Grid, Json, LmcCut, positions
from regimes.errors import UserError
from regimes.registry import nearest

if TYPE_CHECKING:
    from regimes.regime_map.regime_map import RegimeMap
    from regimes.regime_map.results import Advice, DensityTrust, Selection


@report_user_errors
def advise(
    grid: Grid,
    density: Annotated[
        list[float],
        typer.Option("--density", help="Fraction of weights kept, e.g. 0.05 (with --rungs: repeatable, optional)."),
    ] = [],  # noqa: B006 - typer's way to declare an empty default
    at: At = [],  # noqa: B006
    knob: Annotated[
        list[str],
        typer.Option("--knob", metavar="KNOB", help="Choose the value of this knob, e.g. sam_rho. Repeatable."),
    ] = [],  # noqa: B006
    rungs: Annotated[
        bool,
        typer.Option("--rungs", help="List densities and whether each ranks settings as the dense network does."),
    ] = False,
    adviser: Adviser = None,
    lmc: LmcCut = None,
    cka: CkaCut = None,
    as_json: Json = False,
) -> None:
    """Ask a regime map about networks to be pruned to a density.

    With --at: which way to turn the temperature, to which value, with what confidence. Without --at: which network of
    the family to prune. With --knob: the value of that knob, --at giving the others. With --rungs: the densities at
    which a search may rank training settings.
    """
    from regimes.regime_map.regime_map import RegimeMap

    position = positions(at)
    if rungs:
        if knob or adviser or lmc is not None or cka is not None:
            raise UserError("--rungs takes --density and --at only")
        trust = RegimeMap.open(grid).rungs(density or None, position)
        _echo(trust, [entry.facts() for entry in trust], as_json, _print_rungs)
        return
    chart = RegimeMap.open(grid, lmc=lmc, cka=cka)
    if len(density) > 1 or (chart.densities and not density):
        raise UserError(f"--density: one value is needed, e.g. --density 0.05; got {len(density)}")
    pruned_to = density[0] if density else None
    if knob or not set(position) & set(chart.knobs):
        selection = _select(chart, pruned_to, position, adviser, knob)
        _echo(selection, selection.facts(), as_json, _print_selection)
    else:
        advice = chart.advise(pruned_to, position, adviser)
        _echo(advice, advice.facts(), as_json, _print_advice)


def _select(
    chart: RegimeMap, density: float | None, at: Mapping[str, float], adviser: str | None, knobs: list[str]
) -> Selection:
    if knobs == ["sam_rho"]:
        return chart.sam_rho(density, at, adviser)
    for knob in knobs:
        if knob not in chart.knobs:
            raise UserError(f"--knob {knob}: allowed: {', '.join(chart.knobs)}{nearest(knob, chart.knobs)}")
        if knob in at:
            raise UserError(f"--knob {knob}: cannot be chosen and fixed by --at at once; leave one out")
    for name in chart.knobs if knobs else ():
        values = chart.data[name].values
        if name not in knobs and name not in at and len(values) > 1:
            measured = ", ".join(f"{value:g}" for value in values)
            raise UserError(f"missing value for {name}; pass --at {name}=VALUE or --knob {name}; measured: {measured}")
    return chart.select(density, at, adviser)


def _echo(result: Any, facts: Any, as_json: bool, show: Any) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        show(result)


def _print_advice(advice: Advice) -> None:
    to = "" if advice.direction == "stay" else f": to {_setting(advice.target)}"
    typer.echo(f"{advice.direction}{to}   {_basis(advice)}")
    typer.echo(f"  here    {_candidate(advice.evidence['here'])}")
    if advice.direction != "stay":
        typer.echo(f"  target  {_candidate(advice.evidence['target'])}")
    _print_notes(advice.notes)


def _print_selection(selection: Selection) -> None:
    typer.echo(f"{_setting(selection.selected)}   {_basis(selection)}")
    for row in sorted(selection.candidates, key=lambda candidate: -candidate["chosen"]):
        typer.echo(f"  {row['chosen']:4.0%}  {_candidate(row)}")
    _print_notes(selection.notes)


def _print_rungs(trust: list[DensityTrust]) -> None:
    for entry in trust:
        verdict = "trusted    " if entry.trusted else "not trusted"
        typer.echo(f"  density {entry.density:<6g} {verdict}  {entry.reason}")


def _basis(result: Advice | Selection) -> str:
    where = "" if result.density is None else f"density {result.density:g}, "
    return f"({where}adviser '{result.adviser}', confidence {result.confidence:.0%})"


def _candidate(row: Mapping[str, Any]) -> str:
    """One candidate in a line: its setting, what was measured there, and its regime probabilities."""
    knobs = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "chosen"}
    measures = [
        f"{name} {row[name]['value']:.3g} ({row[name]['low']:.3g} to {row[name]['high']:.3g})"
        for name in ("lmc", "cka", "test_error")
        if name in row
    ]
    regimes = ", ".join(f"{name} {share:.0%}" for name, share in row["regimes"].items() if share >= 0.005)
    return f"{_setting(knobs):<20} {'  '.join(measures)}  regime {regimes}"


def _setting(setting: Mapping[str, int | float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def _print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        typer.echo(f"  note: {note}")
