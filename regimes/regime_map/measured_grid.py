"""A checked grid as rules see it: cells in a row, each with its place, its values by seed, and smooth surfaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from regimes.record.grid import knobs_of
from regimes.regime_map.axes import Axis, axes_of
from regimes.regime_map.cell_stats import at_chance, cell_stderr, error_scale, seed_means
from regimes.regime_map.gaussian_process import GaussianProcess, fit
from regimes.regime_map.noise_model import between, by_size
from regimes.regime_map.transforms import Transform, stretch

Numbers = NDArray[np.float64]

FLOOR = 0.005  # of training error: the noise of LMC is never taken for less than half a percent


P = ParamSpec("P")
R = TypeVar("R")


def cached(method: Callable[Concatenate[MeasuredGrid, P], R]) -> Callable[Concatenate[MeasuredGrid, P], R]:
    """Keep what a method returns with the grid it speaks of."""

    @functools.wraps(method)
    def remembered(self: MeasuredGrid, *names: P.args, **more: P.kwargs) -> R:
        key = (method.__name__, *map(str, names))
        if key not in self.memory:
            self.memory[key] = method(self, *names, **more)
        found: R = self.memory[key]
        return found

    return remembered


@dataclass(frozen=True, eq=False)
class MeasuredGrid:
    """All cells of a grid, sorted along its axes, so that no order of a file changes a result.

    Attributes:
        data: the grid, sorted; ``lmc`` in fractions, or in units of the median error where it is a loss.
        axes: knobs, then loads.
        places: (n, k) coordinates of the cells.
        rows: (n,) which cells share their dense networks.
        scale: what LMC was divided by; see `error_scale`.
        memory: what has been worked out already.
    """

    data: xr.Dataset
    axes: tuple[Axis, ...]
    places: Numbers
    rows: NDArray[np.int64]
    scale: float = 1.0
    memory: dict[tuple[str, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: xr.Dataset) -> MeasuredGrid:
        """The cells of a grid that `check_grid` has passed."""
        axes = axes_of(data)
        data = data.sortby([each.name for each in axes])
        if (scale := error_scale(data)) != 1:
            of_loss = {name: data[name] / scale for name in ("lmc", "lmc_stderr") if name in data}
            data = data.assign(of_loss)
        marks = [each.place(np.array(each.values)) for each in axes]
        places = np.stack(np.meshgrid(*marks, indexing="ij"), -1).reshape(-1, len(axes))
        without = [each.name != "density" for each in axes]
        _, rows = np.unique(places[:, without], axis=0, return_inverse=True)
        return cls(data, axes, places, rows.reshape(-1), scale)

    @property
    def knobs(self) -> list[str]:
        """Names of the temperature axes."""
        return knobs_of(self.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(len(each.values) for each in self.axes)

    @property
    @cached
    def density(self) -> Numbers:
        """(n,) density of each cell."""
        return np.broadcast_to(np.array(self.axes[-1].values), self.shape).reshape(-1)

    @property
    @cached
    def told(self) -> NDArray[np.bool_]:
        """(n,) cells with both LMC and CKA whose networks have learnt something."""
        told = np.isfinite(self.mean("lmc")) & np.isfinite(self.mean("cka"))
        return told & ~self.guessing

    @property
    @cached
    def guessing(self) -> NDArray[np.bool_]:
        """(n,) cells at chance."""
        found = at_chance(self.data, self.knobs)
        return np.zeros(len(self.places), bool) if found is None else found.values.reshape(-1)

    @cached
    def seeds(self, name: str) -> Numbers:
        """(n, seeds) of a measure, copies and pairs averaged; NaN where not measured."""
        values = seed_means(self.data[name], self.knobs)
        return values.transpose(*(each.name for each in self.axes), "dense_seed").values.reshape(len(self.places), -1)

    @cached
    def mean(self, name: str) -> Numbers:
        """(n,) cell means; NaN where not measured."""
        seeds = self.seeds(name)
        count = np.isfinite(seeds).sum(1)
        return np.divide(np.nansum(seeds, 1), count, out=np.full(len(seeds), np.nan), where=count > 0)

    @cached
    def stderr(self, name: str) -> Numbers:
        """(n,) standard errors of the cell means, see `cell_stderr`."""
        return cell_stderr(self.data, name, self.knobs).values.reshape(-1)

    @property
    def knows_error(self) -> bool:
        """Whether any cell that tells something has a test error."""
        return "test_error" in self.data and bool(self.measured("test_error").any())

    @property
    @cached
    def noise_lmc(self) -> float:
        """Standard error of a connected cell's mean LMC; at least half a percent.

        No barrier takes LMC above 0, so what stands there is noise, and as much of it lies below: the cells within that
        reach of 0 tell the noise, by their root mean square above 0 or by what seeds and images say, whichever is
        larger. Barriers scatter with their size and are no measure of it.
        """
        lmc, stderr = self.mean("lmc")[self.told], self.stderr("lmc")[self.told]
        reach = max(float(lmc.max(initial=0.0)), FLOOR)
        calm, above = stderr[lmc >= -reach], lmc[lmc > 0]
        spreads = [float(np.sqrt((each**2).mean())) for each in (calm, above) if len(each)]
        return max([FLOOR, *spreads])

    @property
    @cached
    def noise_cka(self) -> Numbers:
        """(n,) deviation of each cell's mean of -log10(1 - CKA) by noise, NaN where not measured.

        As seeds tell it, or copies; a grid with one value a cell tells it by how rough it is.
        """
        found = np.full(len(self.places), np.nan)
        if self.told.any():
            found[self.measured("cka")] = self.surface("cka").spread
        return found

    def measured(self, name: str) -> NDArray[np.bool_]:
        """(n,) cells that a surface goes through: measured, and not at chance."""
        return np.isfinite(self.mean(name)) & ~self.guessing

    @cached
    def stretch(self, name: str) -> Transform:
        """The scale on which a measure is smoothed."""
        return stretch(name, self.noise_lmc if name.startswith("lmc") else float(np.nanmedian(self.seeds(name))))

    @cached
    def surface(self, name: str) -> GaussianProcess:
        """The smooth surface through a measure, on its stretched scale."""
        seeds, scale = self.seeds(name), self.stretch(name)
        there = self.measured(name)
        slope = scale.slope(self.mean(name))
        known = by_size(name, self.mean(name), self._measuring(name)) * slope**2
        shape = np.sqrt(by_size(name, self.mean(name), between(seeds, self.mean(name)))) * slope
        shape = shape if shape[there].all() else np.ones(len(shape))
        return fit(
            self.places[there], scale.there(seeds[there]), self.rows[there], known[there], shape[there], scale.least
        )

    def _measuring(self, name: str) -> Numbers:
        """(n,) variance of the cell means that images make, or copies where there is one dense seed."""
        if self.data.sizes.get("dense_seed", 1) == 1:
            found = self.stderr(name) ** 2
            return np.where(found > 0, found, np.nan)  # a single copy tells nothing
        if f"{name}_stderr" in self.data:
            images = seed_means(self.data[f"{name}_stderr"] ** 2, self.knobs).mean("dense_seed")
            return images.values.reshape(-1)
        return np.zeros(len(self.places))

    def on_grid(self, values: NDArray[np.generic], *more: str) -> xr.DataArray:
        """Values of the cells (n, ...) as an array over the axes, sorted as ``data`` is."""
        names = [each.name for each in self.axes]
        shaped = np.asarray(values).reshape(*self.shape, *np.shape(values)[1:])
        coords = {name: self.data[name].values for name in names}
        return xr.DataArray(shaped, dims=(*names, *more), coords=coords)
