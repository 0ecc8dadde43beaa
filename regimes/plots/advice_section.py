"""Advice held against controls, as a section of a report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.regime_map.evaluate_advice import AdviceEvaluation, evaluate_advice

HEAD = ("chosen by", "right directions", "mean excess", "worst excess", "gain over chance")


def advice_section(data: xr.Dataset) -> Iterator[str]:
    """How each way to choose a temperature did on the grid's own test errors; nothing where it has none."""
    if "test_error" not in data:
        return
    try:
        found = evaluate_advice(data)
    except UserError:
        return  # too few cells left without one of the seeds
    fraction = data["test_error"].attrs.get("units", "1") == "1"
    yield "## Advice, held against controls"
    yield ""
    yield f"| {' | '.join(HEAD)} |"
    yield "|" + "---|" * len(HEAD)
    for each in found:
        yield f"| {' | '.join(row(each, fraction))} |"
    oracle = ["oracle", "100 %" if any(each.cases for each in found) else "-", said(0.0, fraction), said(0.0, fraction)]
    yield f"| {' | '.join([*oracle, '1.00'])} |"
    yield ""
    yield _how(data)


def row(each: AdviceEvaluation, fraction: bool) -> list[str]:
    """A judgement as cells of a table."""
    right = "-" if np.isnan(each.right) else f"{each.right:.0%} of {each.cases}"
    if not each.choices:
        return [each.name, right, "-", "-", "-"]
    captured = "-" if np.isnan(each.captured) else f"{each.captured:+.2f}"
    return [each.name, right, said(each.mean, fraction), said(each.worst, fraction), captured]


def said(error: float, fraction: bool) -> str:
    """An excess of error, in points where errors are fractions."""
    return f"{100 * error:.2f} points" if fraction else f"{error:.3g}"


def _how(data: xr.Dataset) -> str:
    seeds = data.sizes.get("dense_seed", 1)
    how = (
        "One dense seed: its own test errors judge; advisers that look at test errors (`fitted`, `error`, `joint`) are "
        "asked at densities left out of their map."
    )
    if seeds > 1:
        how = f"Leave-one-dense-seed-out: the map of {seeds - 1} seeds advises, the test errors of the other judge."
    return (
        f"{how} *Right directions*: among temperatures worse than the best beyond noise. *Excess*: test error of the "
        "temperature chosen above the lowest of its density, on average over densities and seeds, and at worst. *Gain "
        "over chance*, in log error: 1 is the oracle's, 0 that of a temperature at random."
    )
