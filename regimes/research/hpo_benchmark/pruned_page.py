"""Page of a table of pruned networks: what was trained, what it cost, and how much the settings matter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.recordings import Recording
from regimes.research.page import Page


def pruned_page(recording: Recording, data: xr.Dataset) -> Page:
    """Return the page of a table, complete or not."""
    facts, design = json.loads(data.attrs["facts"]), recording.pruned
    epochs = _listed(data["snapshot"].values)
    known = int(np.isfinite(data["dense_val_error"].isel(snapshot=-1)).sum())
    recorded = int(data["dense_val_error"].isel(snapshot=-1).notnull().sum())
    paragraphs = [
        f"`{recording.file}`: the first {design.settings} settings of the recording, which fill the space evenly; each "
        f"is trained, stopped at epochs {epochs} of {data.sizes['epoch']}, pruned by magnitude to "
        f"densities {_listed(design.densities)}, and retrained {design.copies} times by the recipe of the file. The "
        f"better {design.better} settings have {design.dense_seeds[1]} dense seeds, others {design.dense_seeds[0]}. "
        "`regimes.research.hpo_benchmark.pruned_table` describes the variables of `pruned.nc`.",
        f"Recorded: {recorded} of {design.dense_trainings} dense trainings, {recorded - known} of which diverged. The "
        "same command resumes an interrupted recording; recorded trainings are not repeated.",
        cost_in_words(recording, facts, data.sizes["epoch"]),
    ]
    return Page(
        "pruned",
        f"Pruned and retrained networks: {recording.title}",
        paragraphs,
        [_errors(data, facts), _seconds(facts)],
        kind="bench",
    )


def cost_in_words(recording: Recording, facts: dict[str, Any], epochs: int) -> str:
    """Return the arithmetic of the processor time of a table, from the measured seconds."""
    design, seconds, lanes = recording.pruned, facts["seconds"], facts["engine"]["lanes"]
    mean = {
        "dense": float(np.mean([row["alone"] for row in seconds["dense"].values()])),
        "retrain": seconds["retrain"][str(lanes) if lanes > 1 else "alone"],
        "evaluated": seconds["evaluated"],
    }
    measured = seconds["lmc"] + seconds["cka"] + seconds["hessian_trace"] + seconds["prune"]
    points, evaluated = len(design.snapshots) * len(design.densities), epochs * mean["evaluated"]
    each = mean["dense"] + design.retrainings * mean["retrain"] + (1 + design.retrainings) * evaluated
    total = design.dense_trainings * (each + points * measured) / 60
    return (
        f"Processor time: {design.dense_trainings} dense trainings, each of {mean['dense']:.1f} s, with "
        f"{design.retrainings} retrainings of {mean['retrain']:.1f} s, evaluations of the {1 + design.retrainings} "
        f"networks after every epoch ({evaluated:.1f} s each), and {points} masks measured in {measured:.1f} s each: "
        f"{total:.0f} core-minutes, {total / 2:.0f} minutes on two idle cores."
    )


def _errors(data: xr.Dataset, facts: dict[str, Any]) -> TextTable:
    """Test errors of dense and retrained networks by snapshot and density: spread over the settings."""
    rows = [["stopped at epoch", "density", "best", "quartile", "median", "quartile", "LMC", "CKA"]]
    for epoch in data["snapshot"].values:
        at = data.sel(snapshot=epoch).isel(dense_seed=0)
        rows.append([f"{epoch}", "dense", *_spread(at["dense_test_error"].values), "-", "-"])
        for density in data["density"].values:
            one = at.sel(density=density)
            spread = _spread(one["test_error"].mean("copy", skipna=False).values)
            likeness = [f"{float(np.nanmedian(one[name].values)):.2f}" for name in ("lmc", "cka")]
            rows.append([f"{epoch}", f"{density:g}", *spread, *likeness])
    notes = [
        "test error in %, mean of the copies, over the settings recorded so far; guessing: "
        f"{100 * facts['chance_error']:.0f} %; medians of LMC and CKA"
    ]
    return TextTable("Test error of the settings", rows, notes, None)


def _spread(errors: np.ndarray[Any, Any]) -> list[str]:
    known = errors[~np.isnan(errors)]
    return [f"{100 * each:.1f}" for each in np.quantile(known, [0, 0.25, 0.5, 0.75], method="nearest")]


def _seconds(facts: dict[str, Any]) -> TextTable:
    """Measured seconds of trainings by batch size."""
    seconds = facts["seconds"]
    names = list(seconds["retrain"])
    rows = [["training", "batch size", *(f"in {name} lanes" if name.isdigit() else name for name in names)]]
    for size in sorted(seconds["dense"], key=int):
        rows.append(["dense", size, *(f"{seconds['dense'][size][name]:.2f}" for name in names)])
    rows.append(["retraining", "the recipe's", *(f"{seconds['retrain'][name]:.2f}" for name in names)])
    others = ", ".join(f"{name} {seconds[name]:.2f} s" for name in seconds if name not in ("dense", "retrain"))
    engine = facts["engine"]
    notes = [
        "processor time of one network, without evaluations; judged: one validation; evaluated: validation and test "
        f"images; {others}",
        f"timed separately, in turn, five times ({facts['beside']}); engine of retrainings: {engine['engine']} x "
        f"{engine['lanes']} ({engine['reason']})",
    ]
    return TextTable("Measured seconds", rows, notes, facts["seconds"])


def _listed(values: Any) -> str:
    return ", ".join(f"{each:g}" for each in values)
