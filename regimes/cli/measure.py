"""``regimes measure``: the landscape of checkpoints of one's own, as a table."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from regimes.errors import UserError

if TYPE_CHECKING:
    from regimes.config.sweep import Sweep
    from regimes.experiment.context import RunContext
    from regimes.landscape.measure_networks import Measurement


def show_measure(
    files: list[Path], model: str, data: str, metrics: str, changes: list[str], dense: bool, device: str, as_json: bool
) -> None:
    """Print what the metrics say of checkpoints, with standard errors and seconds."""
    from regimes.experiment.context import one_thread
    from regimes.experiment.stages.pretrained import read_checkpoint
    from regimes.landscape.estimate import Unsure
    from regimes.landscape.measure_networks import mask_of_zeros, measure, usual
    from regimes.landscape.metric import Curve
    from regimes.models.build import load_weights
    from regimes.plots.text_table import finite

    names = [each.strip() for each in metrics.split(",") if each.strip()] or usual(len(files))
    sweep, context = _prepared(model, data, names, changes, device)
    networks = []
    for file in files:
        network = context.new_model(seed=0)
        load_weights(network, read_checkpoint(str(file), network))
        networks.append(network.eval())
    masks = [None if dense else mask_of_zeros(each) for each in networks]
    tables = {name: sweep.measure.options(name) for name in (sweep.measure.model_extra or {})}
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Unsure)  # said in the table
        found = measure(
            networks, context.data, sweep.measure.metrics, tables, masks=masks, loss_fn=sweep.recipe.loss_fn
        )
    shown = [file.name for file in files]
    if as_json:
        typer.echo(json.dumps(finite([_facts(each, shown) for each in found]), indent=1))
        return
    for name, mask in zip(shown, masks, strict=True):
        typer.echo(f"{name}: " + ("every weight lives" if mask is None else f"pruned, density {mask.density:.4g}"))
    rows = [_row(each, shown) for each in found if not isinstance(each.value, Curve)]
    widths = [max(len(row[column]) for row in [HEAD, *rows]) for column in range(len(HEAD))]
    for row in [HEAD, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


NEAR_ZERO = ("lmc", "lmc_test", "lmc_matched", "curve", "train_error", "final_test_error")  # may well be about 0
HEAD = ("networks", "variable", "value", "std. error", "unit", "seconds", "")


def _prepared(
    model: str, data: str, metrics: Sequence[str], changes: list[str], device: str
) -> tuple[Sweep, RunContext]:
    """The tables of a sweep that measuring needs, checked as those of a file are."""
    from regimes.config.overrides import changed
    from regimes.config.sweep_file import resolve
    from regimes.experiment.context import ContextSpec, RunContext, numerics_of
    from regimes.registry import allow_imports_from

    allow_imports_from(os.getcwd())
    raw: dict[str, Any] = {
        "data": {"name": data},
        "model": {"name": model},
        "measure": {"metrics": list(metrics)},
        "recipe": {"augment": "none"},
        "temperature": {"epochs": [1]},
        "load": {"density": [1.0]},
    }
    sweep = resolve(changed(raw, changes), "regimes measure", "measure")
    context = RunContext(ContextSpec(sweep.data, sweep.model, device, numerics_of(device, "eager", "eager"), ""))
    context.check_model()
    if context.loaded.regression and sweep.recipe.loss == "cross-entropy":
        raise UserError("the data have numbers as targets; add --set recipe.loss=mse")
    return sweep, context


def _row(each: Measurement, names: list[str]) -> tuple[str, ...]:
    from regimes.landscape.estimate import Estimate

    value = each.value
    assert isinstance(value, Estimate)
    said = "standard error above a fifth of the value" if value.unsure and each.variable not in NEAR_ZERO else ""
    spread = "-" if math.isnan(value.stderr) else f"{value.stderr:.2g}"
    where = ", ".join(names[i] for i in each.networks)
    return (where, each.variable, f"{value.value:.5g}", spread, value.unit, f"{each.seconds:.2f}", said)


def _facts(each: Measurement, names: list[str]) -> dict[str, Any]:
    from regimes.landscape.metric import Curve

    facts: dict[str, Any] = {
        "networks": [names[i] for i in each.networks],
        "metric": each.metric,
        "variable": each.variable,
    }
    facts |= {"long_name": each.long_name, "seconds": each.seconds}
    if isinstance(each.value, Curve):
        return {**facts, each.value.coordinate: list(each.value.at), "value": list(each.value.values)}
    return {
        **facts,
        "value": each.value.value,
        "stderr": each.value.stderr,
        "samples": each.value.samples,
        "unit": each.value.unit,
    }
