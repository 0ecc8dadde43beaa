"""Metric panels: heat maps of cell means over temperature and density."""

from __future__ import annotations

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from regimes.plots.escape import figure_text
from regimes.plots.grid_matrix import axis_titles, load_groups, table
from regimes.plots.phase_diagram import draw_steps
from regimes.record.grid import knobs_of, loads_of
from regimes.regime_map.cell_stats import cell_mean

# "phase": its file would replace the phase diagram's.
SKIPPED_VARIABLES = ("kept", "regime", "status", "cka_cut", "at_chance", "tried", "phase")


def panel_names(data: xr.Dataset) -> list[str]:
    """Return the variables that get a panel: numeric, depending on a load, without further coordinates."""
    averaged = {dim for name in ("lmc", "cka", "test_error") if name in data for dim in data[name].dims}
    inside = {*knobs_of(data), *averaged, *loads_of(data), "dense_seed", "retrain_seed", "pair"}
    return [
        str(name)
        for name, values in data.data_vars.items()
        if not set(loads_of(data)).isdisjoint(values.dims)
        and np.issubdtype(values.dtype, np.number)
        and set(map(str, values.dims)) <= inside
        and name not in SKIPPED_VARIABLES
        and not str(name).endswith("_stderr")
    ]


def with_excess(data: xr.Dataset) -> xr.Dataset:
    """Add ``test_error_excess``: each cell's mean test error minus the lowest at its density."""
    if "test_error" not in data:
        return data
    errors = cell_mean(data["test_error"], knobs_of(data))
    excess = errors - errors.min(knobs_of(data))
    units = data["test_error"].attrs.get("units", "1")
    about = {"units": units, "long_name": "test error above the lowest at the same density"}
    return data.assign(test_error_excess=(excess.dims, excess.values, about))


def panel(data: xr.Dataset, name: str) -> Figure:
    """Draw one variable as an annotated heat map, with the borders between regimes."""
    values = cell_mean(data[name], knobs_of(data))
    cells = table(values, data)
    numbers = cells.to_numpy(dtype=float)
    rows, columns = cells.shape
    figure = Figure(figsize=(max(5.2, 0.78 * columns + 2.2), max(3.0, 0.46 * rows + 1.5)), layout="constrained")
    axes = figure.subplots()
    colours, norm = _scale(name, numbers)
    units = data[name].attrs.get("units", "1")
    title = data[name].attrs.get("long_name", name)
    sns.heatmap(
        cells.astype(float).rename(index=figure_text),
        ax=axes,
        cmap=colours,
        norm=norm,
        annot=cells.map(_digits),
        fmt="",
        annot_kws={"fontsize": 8},
        linewidths=0.6,
        linecolor="#ffffff",
        cbar_kws={"label": figure_text(_meaning(name, units))},
    )
    axes.set_facecolor("#e4e4e4")
    if "regime" in data:
        draw_steps(axes, table(data["regime"], data).to_numpy(), load_groups(data))
    density_title, temperature_title = axis_titles(data)
    axes.set(xlabel=figure_text(density_title), ylabel=figure_text(temperature_title))
    axes.set_title(figure_text(title[:1].upper() + title[1:]), fontsize=10)
    axes.tick_params(axis="both", length=0)
    axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    return figure


def _meaning(name: str, units: str) -> str:
    """Label of the colour bar."""
    if name.startswith(("lmc", "curve")):
        return "negative: a barrier"
    return "fraction" if units == "1" and "error" in name else "" if units == "1" else units


def _scale(name: str, numbers: np.ndarray) -> tuple[str, Normalize | None]:
    """Colour map and norm: diverging around zero for LMC, sequential otherwise, logarithmic if values span decades."""
    finite = numbers[np.isfinite(numbers)]
    if name in ("lmc", "lmc_test", "lmc_matched", "curve") and len(finite):
        reach = max(float(np.abs(finite).max()), 1e-6)
        return "PuOr", TwoSlopeNorm(0.0, -reach, reach)
    if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        return "cividis", LogNorm(float(finite.min()), float(finite.max()))
    return "cividis", None


def _digits(number: float) -> str:
    if not np.isfinite(number):
        return ""
    size = abs(number)
    if size != 0 and (size >= 1e5 or size < 0.001):
        return f"{number:.1e}"
    return f"{number:.0f}" if size >= 100 else f"{number:.3g}" if size >= 1 else f"{number:.3f}"
