"""A self-contained, interactive HTML page of a grid: pointing at a cell shows its numbers and its LMC curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from regimes.errors import UserError
from regimes.plots.escape import ScriptEncoder
from regimes.plots.grid_matrix import axis_titles, table
from regimes.plots.metric_panel import panel_names
from regimes.plots.phase_diagram import COLOURS
from regimes.record.grid import knobs_of, loads_of
from regimes.regime_map.cell_stats import cell_mean, cell_stderr
from regimes.regime_map.classification import MEANING
from regimes.regime_map.classify import REGIMES, check_classified, meaning_of

if TYPE_CHECKING:
    import altair as alt

INSTALL_COMMAND = "pip install 'regimes[page]'"
CURVE_VARIABLE = "lmc_error"  # variable of the curve, over the coordinate t
CELL_WIDTH, CELL_HEIGHT = 58, 40  # pixels


def write_page(data: xr.Dataset, file: str | Path) -> Path:
    """Write a classified grid as one HTML file that works offline.

    Raises:
        UserError: the grid is not classified, altair is not installed, or the file cannot be written.
    """
    check_classified(data)
    try:
        import altair
        import vl_convert  # noqa: F401 - embeds the drawing library into the page
    except ImportError as error:
        raise UserError(f"the page needs {error.name}; install it with: {INSTALL_COMMAND}") from error
    with altair.data_transformers.enable("default", max_rows=None):
        options = {"renderer": "svg", "actions": False}
        html = _page(data).to_html(inline=True, embed_options=options, json_kwds={"cls": ScriptEncoder})
    try:
        Path(file).write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from error
    return Path(file)


def _page(data: xr.Dataset) -> Any:
    """Map, numbers and curve, linked by the cell pointed at."""
    import altair as alt

    cells = cells_of(data)
    first = {"cell": str(cells["cell"].iloc[0])}
    pointed = alt.selection_point(fields=["cell"], on="pointerover", clear=False, value=[first], name="pointed")
    chart = _map(data, cells, pointed)
    numbers = numbers_of(data)
    numbers_panel = (
        alt.Chart(numbers, title="the cell pointed at")
        .transform_filter(pointed)
        .mark_text(align="left", fontSize=12, dx=-150)
        .encode(y=alt.Y("order:O", axis=None), text="line:N")
        .properties(width=330, height=max(chart.height, 19 * int(numbers["order"].max() + 1)))
    )
    curves = curves_of(data)
    if curves is None:
        return (chart | numbers_panel).configure_view(stroke=None)
    line = (
        alt.Chart(curves, title="on the line between its retrained copies")
        .transform_filter(pointed)
        .mark_line(point=True, opacity=0.7)
        .encode(
            x=alt.X("t:Q", title="position on the line, from one copy (0) to the other (1)"),
            y=alt.Y("value:Q", title="training error", axis=alt.Axis(format="%")),
            color=alt.Color("dense_seed:N", title="dense seed", scale=alt.Scale(scheme="viridis")),
            detail="pair:N",
        )
        .properties(width=chart.width, height=190)
    )
    joined = (chart & line).resolve_scale(color="independent")
    return (joined | numbers_panel).resolve_scale(color="independent").configure_view(stroke=None)


def _map(data: xr.Dataset, cells: pd.DataFrame, pointed: alt.Parameter) -> Any:
    import altair as alt

    rows, columns = list(dict.fromkeys(cells["temperature"])), list(dict.fromkeys(cells["density"]))
    load, temperature = axis_titles(data)
    names = list(REGIMES.values())
    shared = alt.Chart(cells).encode(
        x=alt.X("density:O", sort=columns, title=load, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("temperature:O", sort=rows, title=temperature),
    )
    colour = alt.Color(
        "regime:N", title="regime", scale=alt.Scale(domain=names, range=[COLOURS[name] for name in names])
    )
    squares = shared.mark_rect(cursor="pointer").encode(
        color=colour,
        stroke=alt.condition(pointed, alt.value("#111111"), alt.value("#ffffff")),
        strokeWidth=alt.condition(pointed, alt.value(3), alt.value(1)),
        tooltip=[alt.Tooltip("where:N", title="cell"), alt.Tooltip("regime:N"), alt.Tooltip("meaning:N")],
    )
    letters = shared.mark_text(fontSize=12).encode(
        text="regime:N",
        color=alt.condition(
            "datum.regime == 'II-A' || datum.regime == 'unknown'", alt.value("#222"), alt.value("#fff")
        ),
    )
    return (
        (squares + letters)
        .add_params(pointed)
        .properties(
            width=CELL_WIDTH * len(columns),
            height=CELL_HEIGHT * len(rows),
            title=f"Regimes of pruning: {data.attrs.get('title', '')}",
        )
    )


def cells_of(data: xr.Dataset) -> pd.DataFrame:
    """Return one row per cell: its labels, its regime and the meaning of the regime."""
    regimes, meanings = table(data["regime"], data), meaning_of(data)
    found = []
    for row, column in np.ndindex(*regimes.shape):
        name = REGIMES[int(regimes.to_numpy()[row, column])]
        at, load = regimes.index[row], regimes.columns[column]
        where = f"{', '.join(knobs_of(data)) if len(knobs_of(data)) == 1 else ''} {at}, density {load} %".strip()
        meaning = meanings.get(name, "not measured, diverged, or at chance")
        found.append([f"{row}-{column}", at, load, name, where, meaning])
    return pd.DataFrame(found, columns=["cell", "temperature", "density", "regime", "where", "meaning"])


def numbers_of(data: xr.Dataset) -> pd.DataFrame:
    """Return the lines of text of each cell: setting, regimes, and every variable with its standard error."""
    knobs = knobs_of(data)
    cells = cells_of(data)
    chances = data["regime_probability"]
    parts = {name: table(chances.sel(regime_name=name), data).to_numpy(dtype=float) for name in MEANING}
    measures = {name: table(cell_mean(data[name], knobs), data).to_numpy(dtype=float) for name in panel_names(data)}
    errors = {name: table(cell_stderr(data, name, knobs), data).to_numpy(dtype=float) for name in measures}
    found = []
    for about in cells.to_dict("records"):
        row, column = (int(each) for each in str(about["cell"]).split("-"))
        lines = [str(about["where"]), f"regime {about['regime']}:", *str(about["meaning"]).split(": ")]
        shares = [f"{name} {part[row, column]:.0%}" for name, part in parts.items()]
        lines.append(f"probabilities: {', '.join(shares)}")
        for name, values in measures.items():
            value, error = values[row, column], errors[name][row, column]
            units = data[name].attrs.get("units", "1")
            spread = f" ± {error:.2g}" if error > 0 else ""
            lines.append(f"{name}  {value:.4g}{spread}{'' if units == '1' else ' ' + units}")
        found += [[about["cell"], order, line] for order, line in enumerate(lines)]
    return pd.DataFrame(found, columns=["cell", "order", "line"])


def curves_of(data: xr.Dataset) -> pd.DataFrame | None:
    """Return the error on the line between copies, one row per cell, pair and position; None if it is not recorded."""
    if CURVE_VARIABLE not in data or "t" not in data[CURVE_VARIABLE].dims:
        return None
    values = data[CURVE_VARIABLE]
    kept = {"t", "dense_seed", "pair", *knobs_of(data), *loads_of(data)}
    values = values.mean([dim for dim in values.dims if dim not in kept])
    for name in ("dense_seed", "pair"):
        if name not in values.dims:
            values = values.expand_dims({name: [0]})
    found = []
    for t, seed, pair in np.ndindex(values.sizes["t"], values.sizes["dense_seed"], values.sizes["pair"]):
        cells = table(values.isel(t=t, dense_seed=seed, pair=pair), data)
        where = float(values["t"][t]), int(values["dense_seed"][seed]), int(values["pair"][pair])
        for (row, column), value in np.ndenumerate(cells.to_numpy(dtype=float)):
            if np.isfinite(value):
                found.append([f"{row}-{column}", *where, float(np.round(value, 6))])
    return pd.DataFrame(found, columns=["cell", "t", "dense_seed", "pair", "value"])
