"""Study ``advisers``: advisers compared over all recorded grids and a public one; the default chosen on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from regimes.diagnosis.reference import FILE
from regimes.errors import UserError
from regimes.plots.text_table import TextTable
from regimes.record.grid import knobs_of, load_netcdf
from regimes.regime_map import ADVISERS
from regimes.regime_map.evaluate_advice import ERROR_ADVISERS, AdviceEvaluation, evaluate_advice, pooled
from regimes.regime_map.regime_map import DEFAULT_ADVISER, DEFAULT_ADVISER_WITHOUT_ERRORS
from regimes.research.page import Page, Say
from regimes.research.studies.digits_sweeps import SWEEPS

KNOBS = ("batch size", "learning rate", "epochs", "weight decay", "SAM rho")  # of the digits sweeps, in order
RECORDED = {
    **{f"digits, {knob}": Path(f"reports/advice/{name}.nc") for knob, name in zip(KNOBS, SWEEPS, strict=True)},
    "MNIST-1D, batch size": Path("reports/mnist1d-study/grid.nc"),
}
PUBLIC = "public, batch size"
LEARNT_ON = {PUBLIC: ("diagnosis",)}  # not evaluated where it was learnt
TITLE = "Advisers over all grids: what is right without and with test errors"
PARAGRAPHS = [
    "Grids: five sweeps of digits (five dense seeds), MNIST-1D (eight), pruned networks all; and the public basic "
    "collection of dense ResNet-18 (Zhou et al. 2024, arXiv 2406.16988), one map of batch size and width for each of "
    "ten shares of the data. With several seeds, a map of the others advises on each seed in turn; the collection has "
    "means of five seeds, so its maps advise on their own errors, and those of `fitted`, `error` and `joint` leave out "
    "the width in question. Its connectivity is that of a trained curve.",
    "*Whole grids left out*: the adviser with the largest mean gain on the other grids, judged on the one left out, "
    "beside the default, which is fixed. The defaults were chosen with all of these grids in view.",
]
Evaluations = Mapping[str, Mapping[str, AdviceEvaluation]]  # {grid: {adviser or baseline: evaluation}}


def study(out: Path, runs: Path, say: Say) -> Page:
    """Evaluate every adviser and baseline on every grid."""
    found: dict[str, Mapping[str, AdviceEvaluation]] = {}
    for name, grids in _grids():
        left = LEARNT_ON.get(name, ())
        evaluations = pooled([evaluate_advice(grid) for grid in grids])
        found[name] = {each.name: each for each in evaluations if each.name not in left}
        say(f"{name}: evaluated")
    tables = [_table(found, "right"), _table(found, "captured"), _left_out(found)]
    return Page("advisers", TITLE, PARAGRAPHS, tables)


def _grids() -> Iterator[tuple[str, Sequence[xr.Dataset]]]:
    for name, path in RECORDED.items():
        if not path.exists():
            raise UserError(f"{path}: grid not found; run this study in a clone of the repository")
        yield name, [load_netcdf(path)]
    collection = load_netcdf(FILE)
    maps = [collection.sel(data_fraction=share, drop=True) for share in collection["data_fraction"].values]
    assert all(knobs_of(each) == ["batch_size"] for each in maps)
    yield PUBLIC, maps


def _names(found: Evaluations) -> list[str]:
    """Baselines that are evaluated on all grids, then advisers."""
    shared = [name for name in next(iter(found.values())) if all(name in each for each in found.values())]
    return [*(name for name in shared if name not in ADVISERS), *ADVISERS]


def _table(found: Evaluations, score: str) -> TextTable:
    """A row per adviser, a column per grid, and their mean."""
    title, form = {
        "right": ("Right directions", ".0%"),
        "captured": ("Gain over chance", "+.2f"),
    }[score]
    rows, facts = [["adviser", *found, "mean"]], []
    for name in _names(found):
        values = [getattr(each[name], score) if name in each else float("nan") for each in found.values()]
        if np.isnan(values).all():
            continue
        whole = float(np.mean(values)) if np.isfinite(values).all() else float("nan")
        rows.append([name, *("-" if np.isnan(value) else format(value, form) for value in (*values, whole))])
        facts.append({"adviser": name, "values": dict(zip(found, values, strict=True)), "mean": whole})
    notes = {
        "right": [
            "of the temperatures that are worse than the best beyond noise: "
            + ", ".join(f"{name} {max(each[DEFAULT_ADVISER].cases, 0)}" for name, each in found.items())
        ],
        "captured": ["in log error: 1 for the oracle, 0 for a random temperature"],
    }[score]
    return TextTable(title, rows, notes, facts)


def _left_out(found: Evaluations) -> TextTable:
    """The best adviser of the other grids on each grid, with and without test errors."""
    kinds = {
        "without test errors": (
            [name for name in ADVISERS if name not in ERROR_ADVISERS],
            DEFAULT_ADVISER_WITHOUT_ERRORS,
        ),
        "with test errors": (list(ADVISERS), DEFAULT_ADVISER),
    }
    rows, facts = [["grid left out", "advisers", "chosen on the others", "its gain", "default", "its gain"]], []
    for kind, (names, default) in kinds.items():
        for left, here in found.items():
            others = [each for name, each in found.items() if name != left]
            able = [name for name in names if name in here and all(name in each for each in others)]
            best = max(able, key=lambda name: float(np.mean([each[name].captured for each in others])))
            gains = here[best].captured, here[default].captured
            rows.append([left, kind, best, f"{gains[0]:+.2f}", default, f"{gains[1]:+.2f}"])
            facts.append({"left out": left, "advisers": kind, "chosen": best, "gain": gains[0], "default": gains[1]})
    return TextTable("Whole grids left out", rows, [], facts)
