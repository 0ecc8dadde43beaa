"""``regimes measure``: loss landscape measures of checkpoints, as a table."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import Device, Json

if TYPE_CHECKING:
    from regimes.landscape.measure_networks import Measurement

MAY_BE_ZERO = ("lmc", "lmc_test", "lmc_matched", "curve", "train_error", "final_test_error")
HEAD = ("networks", "variable", "value", "std. error", "unit", "seconds", "")


@report_user_errors
def measure(
    files: Annotated[list[Path], typer.Argument(metavar="A.pt [B.pt ...]", help="State dicts of one architecture.")],
    model: Annotated[str, typer.Option(help="Model name, or module:function.")],
    data: Annotated[str, typer.Option(help="Data set name, or module:function.")],
    metrics: Annotated[str, typer.Option(help="Comma-separated names (default: error, lmc, cka, hessian_trace).")] = "",
    changes: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="An option of model, data or metric: model.depth=20."),
    ] = [],  # noqa: B006 - typer's way to declare an empty default
    dense: Annotated[bool, typer.Option("--dense", help="Include weights that are exactly 0.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure the loss landscape of your own checkpoints, with standard errors.

    Options of the model, data and metrics: --set model.depth=20, --set measure.hessian.images=1000.
    """
    from regimes.cli.read_networks import expand_files, prepare_measurement, read_networks
    from regimes.experiment.context import one_thread
    from regimes.landscape.estimate import UncertainEstimateWarning
    from regimes.landscape.measure_networks import default_metrics, mask_of_zeros
    from regimes.landscape.measure_networks import measure as measure_landscape
    from regimes.landscape.metric import Curve
    from regimes.plots.text_table import finite

    files = expand_files(files)
    names = [each.strip() for each in metrics.split(",") if each.strip()] or default_metrics(len(files))
    sweep, context = prepare_measurement(model, data, names, changes, device, "measure")
    networks = read_networks(files, context)
    masks = [None if dense else mask_of_zeros(each) for each in networks]
    tables = {name: sweep.measure.options(name) for name in (sweep.measure.model_extra or {})}
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UncertainEstimateWarning)  # shown in the table
        found = measure_landscape(
            networks, context.data, sweep.measure.metrics, tables, masks=masks, loss_fn=sweep.recipe.loss_fn
        )
    shown = [file.name for file in files]
    if as_json:
        typer.echo(json.dumps(finite([_facts(each, shown) for each in found]), indent=1))
        return
    for name, mask in zip(shown, masks, strict=True):
        typer.echo(f"{name}: " + ("no pruned weights" if mask is None else f"pruned, density {mask.density:.4g}"))
    rows = [_row(each, shown) for each in found if not isinstance(each.value, Curve)]
    widths = [max(len(row[column]) for row in [HEAD, *rows]) for column in range(len(HEAD))]
    for row in [HEAD, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(each: Measurement, names: list[str]) -> tuple[str, ...]:
    from regimes.landscape.estimate import Estimate

    value = each.value
    assert isinstance(value, Estimate)
    said = "standard error above 20 % of the value" if value.unsure and each.variable not in MAY_BE_ZERO else ""
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
