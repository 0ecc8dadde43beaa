"""The report section that compares advisers with baselines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from regimes.errors import UserError
from regimes.regime_map.evaluate_advice import AdviceEvaluation, evaluate_advice

HEADER = ("chosen by", "right directions", "mean excess", "worst excess", "gain over chance")


def advice_section(data: xr.Dataset) -> Iterator[str]:
    """Yield the lines of the section in Markdown; nothing if the grid has no test errors, or too few cells."""
    if "test_error" not in data:
        return
    try:
        evaluations = evaluate_advice(data)
    except UserError:
        return  # too few cells remain without one of the seeds
    fraction = data["test_error"].attrs.get("units", "1") == "1"
    yield "## Advice compared with baselines"
    yield ""
    yield f"| {' | '.join(HEADER)} |"
    yield "|" + "---|" * len(HEADER)
    for evaluation in evaluations:
        yield f"| {' | '.join(table_row(evaluation, fraction))} |"
    right, none = "100 %" if any(each.cases for each in evaluations) else "-", format_excess(0.0, fraction)
    yield f"| {' | '.join(['oracle', right, none, none, '1.00'])} |"
    yield ""
    yield _how(data)


def table_row(evaluation: AdviceEvaluation, fraction: bool) -> list[str]:
    """Return the cells of an adviser's or baseline's table row, see `HEADER`.

    Args:
        evaluation: the evaluation.
        fraction: whether errors are fractions, as for `format_excess`.
    """
    right = "-" if np.isnan(evaluation.right) else f"{evaluation.right:.0%} of {evaluation.cases}"
    if not evaluation.choices:
        return [evaluation.name, right, "-", "-", "-"]
    excess = [format_excess(each, fraction) for each in (evaluation.mean, evaluation.worst)]
    captured = "-" if np.isnan(evaluation.captured) else f"{evaluation.captured:+.2f}"
    return [evaluation.name, right, *excess, captured]


def format_excess(error: float, fraction: bool) -> str:
    """Format an excess of error: in percentage points if errors are fractions, else as a number."""
    return f"{100 * error:.2f} points" if fraction else f"{error:.3g}"


def _how(data: xr.Dataset) -> str:
    seeds = data.sizes.get("dense_seed", 1)
    how = (
        "One dense seed: evaluated on its own test errors; the advisers that use test errors (`fitted`, `error`, "
        "`joint`) get a map without the density in question."
    )
    if seeds > 1:
        how = f"Leave-one-out over dense seeds: a map of {seeds - 1} advises, evaluated on the errors of the other."
    return (
        f"{how} *Right directions*: share among the temperatures that are worse than the best beyond noise. *Excess*: "
        "test error of the chosen temperature minus the lowest at its density, as mean and maximum over densities and "
        "seeds. *Gain over chance*, in log error: 1 for the oracle, 0 for a random temperature."
    )
