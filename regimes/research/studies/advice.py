"""Does the map advise well? Advisers against controls, dense seeds and densities left out; which rungs it trusts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from regimes.plots.advice_section import HEAD, row
from regimes.plots.text_table import TextTable
from regimes.record.grid import check_grid, knobs_of, load_netcdf
from regimes.regime_map.classify import classify
from regimes.regime_map.evaluate_advice import AdviceEvaluation, evaluate_advice, pooled
from regimes.regime_map.measured_grid import MeasuredGrid
from regimes.regime_map.noise_model import between, by_size
from regimes.regime_map.regime_map import RegimeMap
from regimes.regime_map.transforms import CLOSE
from regimes.research.page import Page, Say
from regimes.research.studies.adaptive_replay import on_diagrams, on_records
from regimes.research.studies.digits_seed_runs import seeded

FAR_FROM_ONE = 0.995  # CKA below which its scatter is counted
ELSEWHERE = Path("reports/cifar10-cpu/grid.nc")  # one dense seed, measured on part of CIFAR-10
TITLE = "Advice: which way to turn a knob, and which densities to trust"
WORDS = [
    "Five sweeps of handwritten digits (PreResNet-14, width 8), one knob each, 7 temperatures x 7 densities x 5 dense "
    "seeds x 2 retrained copies. The grids stand beside this page as netCDF; without them the study measures anew.",
    "A map of four dense seeds is asked, and the test errors of the fifth judge, each seed in turn. The advisers "
    "`barrier`, `regime`, `similarity` and `combined` see LMC and CKA alone; `fitted` weighs these by the test errors "
    "of other densities; `error` sees the test errors of other seeds; `joint` all of it. Excess is test error above "
    "the lowest of that density (the oracle's); gain over chance, in log error, is 1 for the oracle and 0 for a "
    "temperature at random. At 2 % density single copies collapse to guessing, and one of these decides over a mean "
    "excess. The control `lowest dense test error` sees the judged seed's own dense networks; the map has not.",
]


def study(out: Path, runs: Path, say: Say) -> Page:
    """Judge advice on the five seeded sweeps, and on CIFAR-10 where it is recorded."""
    grids = seeded(out, runs, say)
    sheets = []
    for leave in (False, True):
        found = {}
        for name, grid in grids.items():
            found[name] = evaluate_advice(grid, leave_density=leave)
            say(f"{name}: judged{', densities left out' if leave else ''}")
        sheets.append(
            _sheet("All knobs" + (", densities left out too" if leave else ""), pooled(found.values()), leave)
        )
        if not leave:
            sheets += [_sheet(_knob(grid), found[name], leave) for name, grid in grids.items()]
    sheets.append(_rungs(grids))
    sheets += [_moves(grids), _scatter(grids)]
    if ELSEWHERE.exists():
        sheets.append(_sheet("CIFAR-10 (part), epochs, one dense seed", evaluate_advice(load_netcdf(ELSEWHERE)), False))
    sheets += [on_records({_knob(grid): grid for grid in grids.values()}, say), on_diagrams(say)]
    return Page("advice", TITLE, WORDS, sheets)


def _knob(grid: xr.Dataset) -> str:
    (knob,) = knobs_of(grid)
    return str(grid[knob].attrs.get("long_name", knob))


def _sheet(title: str, found: Sequence[AdviceEvaluation], left: bool) -> TextTable:
    facts = [{name: getattr(each, name) for name in AdviceEvaluation.__dataclass_fields__} for each in found]
    notes = ["each density but the two ends left out of the map that is asked about it"] if left else []
    return TextTable(title, [list(HEAD), *(row(each, True) for each in found)], notes, facts)


def _rungs(grids: Mapping[str, xr.Dataset]) -> TextTable:
    rows, facts = [["knob", "seeds agree", *(f"{100 * each:g} %" for each in _densities(grids))]], []
    for grid in grids.values():
        found = RegimeMap(grid).rungs()
        ceiling = found[0].ceiling
        shown = [f"{each.tau:+.2f}{' *' if each.trusted else ''}" if each.tau is not None else "-" for each in found]
        rows.append([_knob(grid), "-" if ceiling is None else f"{ceiling:.2f}", *shown])
        facts.append({"knob": _knob(grid), "rungs": [each.facts() for each in found]})
    notes = [
        "Kendall's tau along the temperature: test error at that density against dense networks of other seeds",
        "seeds agree: tau of dense networks of two seeds, the most to expect; *: trusted (`regimes rungs`)",
    ]
    return TextTable("Which densities rank temperatures as the dense network does", rows, notes, facts)


def _densities(grids: Mapping[str, xr.Dataset]) -> list[float]:
    return [float(each) for each in next(iter(grids.values()))["density"].values]


def _scatter(grids: Mapping[str, xr.Dataset]) -> TextTable:
    """How much dense seeds differ: what the noise "digits" of the synthetic diagrams is taken from."""
    rows, facts = [["knob", "LMC, constant part", "share of the barrier", "share of 1 - CKA"]], []
    for grid in grids.values():
        m = MeasuredGrid.of(check_grid(grid, _knob(grid)))
        size = np.abs(m.mean("lmc"))
        variance = by_size("lmc", size, between(m.seeds("lmc"), m.mean("lmc")))
        constant, steep = variance[size.argmin()], (variance.max() - variance.min()) / np.ptp(size**2)
        logs = np.log(np.clip(1 - m.seeds("cka"), CLOSE, None))[m.mean("cka") < FAR_FROM_ONE]
        scatter = float(np.sqrt(logs.var(1, ddof=1).mean()))
        found = [float(np.sqrt(constant)), float(np.sqrt(steep)), scatter]
        rows.append([_knob(grid), f"{found[0]:.4f}", *(f"{each:.2f}" for each in found[1:])])
        facts.append(dict(zip(("lmc", "barrier", "cka"), found, strict=True)))
    notes = [f"standard deviations between dense seeds; of log(1 - CKA), where CKA is below {FAR_FROM_ONE:g}"]
    return TextTable("Noise of the recorded grids", rows, notes, facts)


def _moves(grids: Mapping[str, xr.Dataset]) -> TextTable:
    """What the operational rule says inside the regimes of the landscape."""
    names = ("I", "II-A", "II-B")
    counts = np.zeros((3, 3), int)
    for grid in grids.values():
        by_cuts, by_error = (classify(grid, rule)["regime"].values for rule in ("smooth", "error"))
        for i, j in np.ndindex(3, 3):
            counts[i, j] += int(((by_cuts == i) & (by_error == j)).sum())
    rows = [["regime by LMC and CKA", "hotter lowers the error", "colder does", "neither, by 5 %"]]
    rows += [[name, *map(str, counts[i])] for i, name in enumerate(names)]
    return TextTable("Cells: the two rules side by side", rows, [], counts.tolist())
