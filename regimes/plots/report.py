"""The report page: regimes, thresholds, test errors, advice, the run, and all panels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from regimes.landscape.estimate import MAX_RELATIVE_STDERR
from regimes.plots.advice_section import advice_section
from regimes.plots.escape import markdown_code, markdown_text
from regimes.plots.grid_matrix import axis_titles, best_rows, percent, table
from regimes.plots.metric_panel import panel_names
from regimes.plots.run_info import engine_line
from regimes.record.grid import knobs_of
from regimes.regime_map.cell_stats import cell_mean, cell_stderr, seeds_of
from regimes.regime_map.classify import REGIMES, meaning_of, present


def write_report(data: xr.Dataset, out: Path, facts: dict[str, Any]) -> Path:
    """Write the report page of a classified grid as ``README.md``, and return its path.

    Args:
        data: a grid with ``regime``.
        out: the folder with the figures.
        facts: information about the run, see `run_facts`; empty to leave the section out.
    """
    lines = [f"# Regimes of pruning: {markdown_text(data.attrs.get('title', facts.get('name', '')))}", ""]
    lines += ["![phase diagram](phase.png)", "", *_reading(data), "", *_thresholds(data), ""]
    lines += _by_density(data)
    lines += ["", *advice_section(data)]
    if facts:
        lines += ["", *_run(facts)]
    lines += ["", "## Panels", ""]
    for name in panel_names(data):
        lines += [f"![{markdown_text(name)}]({quote(name)}.png)", ""]
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
        yield f"- **{name}** ({markdown_text(meaning[name])}): {share}."
    unknown = int((data["regime"] == -1).sum())
    if unknown:
        yield f"- {unknown} cells are unknown: not measured, failed, diverged, or at chance."
    seeds = seeds_of(data)
    if seeds:
        behind = ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in seeds.items())
        yield f"- Networks per cell: {behind.replace('_', ' ')}."
    for name, count in _unsure(data).items():
        much = "a standard error of more than a fifth of the value"
        yield f"- Note: {count} values of {markdown_code(name)} have {much}."
    by_density = "kept" in data and "density" in data["kept"].dims
    off = abs(data["kept"] / data["density"] - 1).max() if by_density else 0.0
    if "nu" in data.coords and "density" in data.dims:
        pressed = ", ".join(f"{float(each.nu):g} ({percent(float(each.density))} %)" for each in data["density"])
        yield f"- Networks are discovered, not pruned; nu (mean density): {pressed}."
    elif off > 0.02:
        kept = data["kept"].mean([dim for dim in data["kept"].dims if dim != "density"]).sortby("density")
        reached = ", ".join(f"{percent(float(each.density))} % ({100 * float(each):.3g} %)" for each in kept)
        yield f"- Whole channels are pruned; requested density (mean fraction kept): {reached}."
    yield ""
    if data["regime"].attrs["rule"] == "error":
        return
    yield (
        "How to read it: in I the retrained copies are poorly connected, and the suggested move is hotter; in II-A "
        "they are connected, and colder training makes them more similar: the suggested move is colder; in II-B it "
        "does not, and the suggestion is to stay (Zhou et al. 2023, arXiv 2305.18383). LMC is negative if there is "
        "a barrier between two copies, and positive if the line between them has a lower error than the copies. Test "
        "errors, if they were measured, are compared with the regimes below."
    )


def _unsure(data: xr.Dataset) -> dict[str, int]:
    """Number of values with a large standard error, for variables in nat (others may be near zero)."""
    names = [
        str(name) for name in data.data_vars if f"{name}_stderr" in data and data[name].attrs.get("units") == "nat"
    ]
    found = {name: int((data[f"{name}_stderr"] > MAX_RELATIVE_STDERR * abs(data[name])).sum()) for name in names}
    return {name: count for name, count in found.items() if count}


def _thresholds(data: xr.Dataset) -> Iterator[str]:
    yield "## Thresholds"
    yield ""
    yield f"Rule {markdown_code(data['regime'].attrs['rule'])}."
    yield ""
    for note in data["regime"].attrs["thresholds"].split("; "):
        yield f"- {markdown_text(note)}."


def _by_density(data: xr.Dataset) -> Iterator[str]:
    """Table that compares the regimes with the measured test errors."""
    best = best_rows(data)
    if not best:
        return
    cells = table(data["regime"], data)
    errors = table(cell_mean(data["test_error"], knobs_of(data)), data)
    load, temperature = map(markdown_text, axis_titles(data))
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
        load_value = f"{cells.columns[column]} %" if "density" in data.dims else cells.columns[column]
        yield (
            f"| {load_value} | {said(column_errors[row])} | {markdown_text(cells.index[row])} | {regimes[row]} "
            f"| {ends} | {regimes[0]}, {regimes[-1]} |"
        )
    yield ""
    yield f"The lowest errors are chosen on the test split: they describe this grid and are no advice. {_noise(data)}"


def _noise(data: xr.Dataset) -> str:
    stderr = cell_stderr(data.drop_vars("test_error_stderr", errors="ignore"), "test_error", knobs_of(data))
    typical = float(np.sqrt((stderr**2).mean()))
    fraction = data["test_error"].attrs.get("units", "1") == "1"
    if not typical:
        return "Note: with one network per cell, the noise of the differences is not known."
    size = f"{100 * typical:.2f} points" if fraction else f"{typical:.2g}"
    noise = f"Note: a cell's mean test error has a standard error of about {size}"
    if data.sizes.get("dense_seed", 2) > 1:
        return f"{noise}."
    return f"{noise} over retrained copies of one dense network; dense seeds may differ by more."


def _run(facts: dict[str, Any]) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    run, draw = f"regimes run {facts['file']} --out {facts['folder']}", f"regimes map {facts['folder']}"
    yield f"- Commands: {markdown_code(run)}, then {markdown_code(draw)}."
    numerics = ", ".join(f"{key} {value}" for key, value in facts.get("numerics", {}).items())
    hardware = f"{facts.get('processor')}, {facts.get('cores')} cores, {facts.get('system')}"
    yield f"- Hardware: {markdown_text(hardware)}."
    yield f"- Numerics: {markdown_text(numerics)}."
    if engines := engine_line(facts):
        yield f"- Engines: {markdown_text(engines)}."
    versions = {"Python": facts.get("python"), **facts.get("versions", {})}
    yield f"- Versions: {markdown_text(', '.join(f'{name} {value}' for name, value in versions.items()))}."
    for kind, (count, hours) in facts["stages"].items():
        yield f"- {markdown_text(kind)}: {count} stages, {hours:.3f} core-hours."
    yield f"- Wall time of all commands that were not killed: {facts['wall_hours']:.3f} hours."
    yield ""
    yield "<details><summary>The sweep, with every default</summary>"
    yield ""
    yield "```json"
    yield json.dumps(facts.get("sweep"), indent=1)
    yield "```"
    yield ""
    yield "</details>"
