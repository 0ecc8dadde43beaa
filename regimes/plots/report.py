"""The report page: what was asked, on what it ran, how the lines were drawn, and what it means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regimes.landscape.estimate import UNSURE
from regimes.plots.advice_section import advice_section
from regimes.plots.grid_matrix import axis_titles, best_rows, percent, table
from regimes.plots.metric_panel import panel_names
from regimes.record.grid import knobs_of
from regimes.regime_map.cell_stats import cell_mean, cell_stderr, seeds_of
from regimes.regime_map.classify import REGIMES, meaning_of, present


def write_report(data: xr.Dataset, out: Path, facts: dict[str, Any]) -> Path:
    """Write ``README.md`` beside the figures."""
    lines = [f"# Regimes of pruning: {data.attrs.get('title', facts.get('name', ''))}", ""]
    lines += ["![phase diagram](phase.png)", "", *_reading(data), "", *_thresholds(data), ""]
    lines += _by_density(data)
    lines += ["", *advice_section(data)]
    if facts:
        lines += ["", *_run(facts)]
    lines += ["", "## Panels", ""]
    for name in panel_names(data):
        lines += [f"![{name}]({name}.png)", ""]
    path = out / "README.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _reading(data: xr.Dataset) -> Iterator[str]:
    counts, meaning = present(data), meaning_of(data)
    total = sum(counts.values())
    yield "## What it shows"
    yield ""
    for name, count in counts.items():
        share = f"{count} of {total} cells" if count else "not seen in these data"
        yield f"- **{name}** ({meaning[name]}): {share}."
    unknown = int((data["regime"] == -1).sum())
    if unknown:
        yield f"- {unknown} cells are unknown: not measured, failed, or diverged."
    seeds = seeds_of(data)
    if seeds:
        behind = ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in seeds.items())
        yield f"- Behind each cell: {behind.replace('_', ' ')}."
    for name, count in _unsure(data).items():
        yield f"- Mind `{name}`: in {count} of its values the standard error is more than a fifth of the value."
    off = abs(data["kept"] / data["density"] - 1).max() if "kept" in data else 0.0
    if "nu" in data.coords:
        pressed = ", ".join(f"{float(each.nu):g} ({percent(float(each.density))} %)" for each in data["density"])
        yield f"- Networks were discovered, not pruned; nu (density, mean over networks): {pressed}."
    elif off > 0.02:
        kept = data["kept"].mean([dim for dim in data["kept"].dims if dim != "density"]).sortby("density")
        reached = ", ".join(f"{percent(float(each.density))} % ({100 * float(each):.3g} %)" for each in kept)
        yield f"- Channels leave whole; density asked for (kept, on average): {reached}."
    yield ""
    if "lmc_cut" not in data["regime"].attrs:
        return
    yield (
        "Read it so: in I the pruned network is poorly connected, and the wanted move is hotter; in II-A it is "
        "connected but its retrained copies disagree, and the wanted move is colder; in II-B both are well (Zhou et "
        "al. 2023, arXiv 2305.18383). LMC is negative where a barrier stands, positive where the line between two "
        "copies is better than they are. Whether the test errors of *this* grid follow is told below, column by column."
    )


def _unsure(data: xr.Dataset) -> dict[str, int]:
    """How many values of each measure have a large standard error; not of those that may be about zero."""
    names = [
        str(name) for name in data.data_vars if f"{name}_stderr" in data and data[name].attrs.get("units") == "nat"
    ]
    found = {name: int((data[f"{name}_stderr"] > UNSURE * abs(data[name])).sum()) for name in names}
    return {name: count for name, count in found.items() if count}


def _thresholds(data: xr.Dataset) -> Iterator[str]:
    yield "## How the lines were drawn"
    yield ""
    yield f"Rule `{data['regime'].attrs['rule']}`."
    yield ""
    for note in data["regime"].attrs["thresholds"].split("; "):
        yield f"- {note}."


def _by_density(data: xr.Dataset) -> Iterator[str]:
    """The table that lets the reader hold the regimes against the measured test error."""
    best = best_rows(data)
    if not best:
        return
    cells = table(data["regime"], data)
    errors = table(cell_mean(data["test_error"], knobs_of(data)), data)
    load, temperature = axis_titles(data)
    name = temperature.split("   ")[0]
    fraction = data["test_error"].attrs.get("units", "1") == "1"

    def said(error: float) -> str:
        return f"{100 * error:.2f} %" if fraction else f"{error:.4g}"

    yield "## Lowest test error at each density"
    yield ""
    yield f"| {load.split(' (')[0]} | lowest test error | at {name} | regime there | hottest, coldest | their regimes |"
    yield "|---|---|---|---|---|---|"
    for column, row in best.items():
        regimes = [REGIMES[int(number)] for number in cells.iloc[:, column]]
        column_errors = errors.iloc[:, column].to_numpy()
        ends = ", ".join("-" if np.isnan(each) else said(each) for each in column_errors[[0, -1]])
        yield (
            f"| {cells.columns[column]} % | {said(column_errors[row])} | {cells.index[row]} | {regimes[row]} "
            f"| {ends} | {regimes[0]}, {regimes[-1]} |"
        )
    yield ""
    yield "The lowest error of a column is chosen on the test split, so it is a description, not advice. " + _noise(
        data
    )


def _noise(data: xr.Dataset) -> str:
    stderr = cell_stderr(data.drop_vars("test_error_stderr", errors="ignore"), "test_error", knobs_of(data))
    typical = float(np.sqrt((stderr**2).mean()))
    fraction = data["test_error"].attrs.get("units", "1") == "1"
    if not typical:
        return "With one network a cell there is no spread to compare differences with."
    size = f"{100 * typical:.2f} points" if fraction else f"{typical:.2g}"
    noise = f"Mind the noise: a cell's mean test error has a standard error of about {size}"
    if data.sizes.get("dense_seed", 2) > 1:
        return f"{noise}."
    return f"{noise} between retrained copies of one dense network; another dense seed may differ by more."


def _run(facts: dict[str, Any]) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    yield f"- Commands: `regimes run {facts['file']} --out {facts['folder']}`, then `regimes map {facts['folder']}`."
    numerics = facts.get("numerics", {})
    yield f"- Hardware: {facts.get('processor')}, {facts.get('cores')} cores, {facts.get('system')}."
    yield f"- Numerics: {', '.join(f'{key} {value}' for key, value in numerics.items())}."
    versions = ", ".join(f"{name} {value}" for name, value in facts.get("versions", {}).items())
    yield f"- Versions: Python {facts.get('python')}, {versions}."
    for kind, (count, hours) in facts["stages"].items():
        yield f"- {kind}: {count} stages, {hours:.3f} core-hours."
    yield f"- Wall time of the invocations that ended by themselves: {facts['wall_hours']:.3f} hours."
    yield ""
    yield "<details><summary>The sweep, with every default</summary>"
    yield ""
    yield "```json"
    yield json.dumps(facts.get("sweep"), indent=1)
    yield "```"
    yield ""
    yield "</details>"
