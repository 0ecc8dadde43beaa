"""Study ``advice``: advisers compared with baselines by cross-validation over dense seeds and densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from regimes.plots.advice_section import HEADER, table_row
from regimes.plots.text_table import TextTable
from regimes.record.grid import check_grid, knobs_of, load_netcdf
from regimes.regime_map.classify import classify
from regimes.regime_map.evaluate_advice import AdviceEvaluation, evaluate_advice, pooled
from regimes.regime_map.measured_grid import MeasuredGrid
from regimes.regime_map.noise_model import variance_between_seeds, variance_by_size
from regimes.regime_map.regime_map import RegimeMap
from regimes.regime_map.transforms import MIN_CKA_DISTANCE
from regimes.research.page import Page, Say
from regimes.research.studies.adaptive_replay import replay_recorded_grids, replay_synthetic_grids
from regimes.research.studies.digits_sweeps import five_seed_grids

MAX_CKA = 0.995  # cells above are left out of the noise of CKA
CIFAR_GRID = Path("reports/cifar10-cpu/grid.nc")  # one dense seed, measured on part of CIFAR-10
TITLE = "Advice: direction of a knob, and trusted densities"
PARAGRAPHS = [
    "Five sweeps of handwritten digits (PreResNet-14, width 8), one knob each, 7 temperatures x 7 densities x 5 dense "
    "seeds x 2 retrained copies. The grids are in this folder as netCDF; without them the study repeats the sweeps.",
    "Leave-one-seed-out: a map of four dense seeds gives advice, evaluated by the test errors of the fifth. The "
    "advisers `barrier`, `regime`, `similarity` and `combined` use only LMC and CKA; `fitted` weights these by the "
    "test errors of other densities; `error` uses the test errors of other seeds; `joint` uses all of them. Excess is "
    "the test error above the lowest at that density (the oracle's); gain over chance, in log error, is 1 for the "
    "oracle and 0 for a random temperature. At 2 % density single copies collapse to guessing, and one of these can "
    "dominate a mean excess. The baseline `lowest dense test error` uses the evaluated seed's own dense networks; the "
    "map does not.",
]


def study(out: Path, runs: Path, say: Say) -> Page:
    """Evaluate advice on the five digits sweeps with five seeds, and on CIFAR-10 if its grid exists."""
    grids = five_seed_grids(out, runs, say)
    tables = []
    for leave in (False, True):
        found = {}
        for name, grid in grids.items():
            found[name] = evaluate_advice(grid, leave_density=leave)
            say(f"{name}: evaluated{', densities left out' if leave else ''}")
        tables.append(
            _table("All knobs" + (", densities left out too" if leave else ""), pooled(found.values()), leave)
        )
        if not leave:
            tables += [_table(_knob(grid), found[name], leave) for name, grid in grids.items()]
    tables.append(_rungs(grids))
    tables += [_moves(grids), _scatter(grids)]
    if CIFAR_GRID.exists():
        tables.append(
            _table("CIFAR-10 (part), epochs, one dense seed", evaluate_advice(load_netcdf(CIFAR_GRID)), False)
        )
    tables += [replay_recorded_grids({_knob(grid): grid for grid in grids.values()}, say), replay_synthetic_grids(say)]
    return Page("advice", TITLE, PARAGRAPHS, tables)


def _knob(grid: xr.Dataset) -> str:
    (knob,) = knobs_of(grid)
    return str(grid[knob].attrs.get("long_name", knob))


def _table(title: str, found: Sequence[AdviceEvaluation], left: bool) -> TextTable:
    facts = [{name: getattr(each, name) for name in AdviceEvaluation.__dataclass_fields__} for each in found]
    notes = (
        ["each density except the lowest and highest is left out of the map that gives advice on it"] if left else []
    )
    return TextTable(title, [list(HEADER), *(table_row(each, True) for each in found)], notes, facts)


def _rungs(grids: Mapping[str, xr.Dataset]) -> TextTable:
    rows, facts = [["knob", "between seeds", *(f"{100 * each:g} %" for each in _densities(grids))]], []
    for grid in grids.values():
        found = RegimeMap(grid).rungs()
        ceiling = found[0].ceiling
        shown = [f"{each.tau:+.2f}{' *' if each.trusted else ''}" if each.tau is not None else "-" for each in found]
        rows.append([_knob(grid), "-" if ceiling is None else f"{ceiling:.2f}", *shown])
        facts.append({"knob": _knob(grid), "rungs": [each.facts() for each in found]})
    notes = [
        "Kendall's tau over temperatures between the test error at that density and that of dense networks of other "
        "seeds",
        "between seeds: tau of dense networks of two seeds, an upper bound; *: trusted (`regimes advise --rungs`)",
    ]
    return TextTable("Ranking of temperatures by density, compared with the dense network", rows, notes, facts)


def _densities(grids: Mapping[str, xr.Dataset]) -> list[float]:
    return [float(each) for each in next(iter(grids.values()))["density"].values]


def _scatter(grids: Mapping[str, xr.Dataset]) -> TextTable:
    """Noise between dense seeds; the basis of noise "digits" of the synthetic grids."""
    rows, facts = [["knob", "LMC, constant part", "share of the barrier", "share of 1 - CKA"]], []
    for grid in grids.values():
        m = MeasuredGrid.of(check_grid(grid, _knob(grid)))
        size = np.abs(m.mean("lmc"))
        variance = variance_by_size("lmc", size, variance_between_seeds(m.seeds("lmc"), m.mean("lmc")))
        constant, steep = variance[size.argmin()], (variance.max() - variance.min()) / np.ptp(size**2)
        logs = np.log(np.clip(1 - m.seeds("cka"), MIN_CKA_DISTANCE, None))[m.mean("cka") < MAX_CKA]
        scatter = float(np.sqrt(logs.var(1, ddof=1).mean()))
        found = [float(np.sqrt(constant)), float(np.sqrt(steep)), scatter]
        rows.append([_knob(grid), f"{found[0]:.4f}", *(f"{each:.2f}" for each in found[1:])])
        facts.append(dict(zip(("lmc", "barrier", "cka"), found, strict=True)))
    notes = [f"standard deviations between dense seeds; for CKA of log(1 - CKA), where CKA is below {MAX_CKA:g}"]
    return TextTable("Noise of the recorded grids", rows, notes, facts)


def _moves(grids: Mapping[str, xr.Dataset]) -> TextTable:
    """Cells by regime of the landscape rule and of the error rule."""
    names = ("I", "II-A", "II-B")
    counts = np.zeros((3, 3), int)
    for grid in grids.values():
        by_cuts, by_error = (classify(grid, rule)["regime"].values for rule in ("transition", "error"))
        for i, j in np.ndindex(3, 3):
            counts[i, j] += int(((by_cuts == i) & (by_error == j)).sum())
    rows = [["regime by LMC and CKA", "hotter lowers the error", "colder lowers it", "neither by 5 %"]]
    rows += [[name, *map(str, counts[i])] for i, name in enumerate(names)]
    return TextTable("Cells by landscape rule and error rule", rows, [], counts.tolist())
