"""A grid prepared for analysis: flat arrays over cells, with coordinates, values per seed, and fitted surfaces."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import expit

from regimes.errors import UserError
from regimes.record.grid import knobs_of
from regimes.regime_map.axes import Axis, axes_of
from regimes.regime_map.cell_stats import cells_at_chance, error_scale, seed_means
from regimes.regime_map.gaussian_process import GaussianProcess, fit
from regimes.regime_map.noise_model import variance_between_seeds, variance_by_size
from regimes.regime_map.transforms import CONNECTIVITY, Transform, transform_of
from regimes.regime_map.wild_cells import wild_cells

Numbers = NDArray[np.float64]

UNDERFIT_SHARE, UNDERFIT_TOLERANCE = 0.5, 0.04  # training error, as a share of the error of guessing
MAX_SURFACE_CELLS = 1600  # a surface is fitted to; larger grids are fitted to the means of blocks of cells
MAX_CELLS = 10_000  # of a grid: posterior draws need the covariance of all cells

P = ParamSpec("P")
R = TypeVar("R")


def cached(method: Callable[Concatenate[MeasuredGrid, P], R]) -> Callable[Concatenate[MeasuredGrid, P], R]:
    """Cache a method's result on the grid."""

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
    """The n cells of a grid, sorted along its axes so that results do not depend on the order in a file.

    Attributes:
        data: the sorted grid; ``lmc`` is divided by ``scale``.
        axes: the knobs, then the loads.
        places: (n, k) coordinates of the cells, see `Axis.place`.
        rows: (n,) index of each cell's dense training; cells with the same index share their dense networks.
        scale: 1 if LMC is a fraction of error, else a typical loss; see `error_scale`.
        memory: cache of computed results.
    """

    data: xr.Dataset
    axes: tuple[Axis, ...]
    places: Numbers
    rows: NDArray[np.int64]
    scale: float = 1.0
    memory: dict[tuple[str, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: xr.Dataset) -> MeasuredGrid:
        """Return the cells of a grid checked by `check_grid`."""
        axes = axes_of(data)
        if (cells := math.prod(len(axis.values) for axis in axes)) > MAX_CELLS:
            sizes = " x ".join(str(len(axis.values)) for axis in axes)
            hint = "select fewer values along an axis, e.g. data.isel(density=slice(None, None, 2))"
            raise UserError(f"{sizes} = {cells:,} cells; a map takes {MAX_CELLS:,} at most: {hint}")
        data = data.sortby([each.name for each in axes])
        if (scale := error_scale(data)) != 1:
            of_loss = {name: data[name] / scale for name in ("lmc", "lmc_stderr") if name in data}
            data = data.assign(of_loss)
        marks = [each.place(np.array(each.values)) for each in axes]
        places = np.stack(np.meshgrid(*marks, indexing="ij"), -1).reshape(-1, len(axes))
        without = [each.name != "density" for each in axes]
        _, rows = np.unique(places[:, without], axis=0, return_inverse=True)
        return cls(data, axes, places, rows.reshape(-1), scale)

    @functools.cached_property
    def knobs(self) -> list[str]:
        """Names of the temperature axes."""
        return knobs_of(self.data)

    @functools.cached_property
    def knob_axes(self) -> tuple[Axis, ...]:
        """The temperature axes."""
        return self.axes[: len(self.knobs)]

    @functools.cached_property
    def load_axes(self) -> tuple[Axis, ...]:
        """The load axes: density, width, ..."""
        return self.axes[len(self.knobs) :]

    @property
    def density_axis(self) -> Axis | None:
        """The density axis; None if the grid has other loads only."""
        return next((axis for axis in self.axes if axis.name == "density"), None)

    def load_coordinates(self, places: Numbers) -> Numbers:
        """Return the columns of coordinates (..., k) that belong to the load axes."""
        return places[..., len(self.knobs) :]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values along each axis."""
        return tuple(len(each.values) for each in self.axes)

    @property
    @cached
    def usable(self) -> NDArray[np.bool_]:
        """Mask (n,) of cells with both LMC and CKA whose networks are not at chance."""
        measured = np.isfinite(self.mean("lmc")) & np.isfinite(self.mean("cka"))
        return measured & ~self.at_chance

    @property
    @cached
    def at_chance(self) -> NDArray[np.bool_]:
        """Mask (n,) of cells at chance, see `cells_at_chance`."""
        found = cells_at_chance(self.data, self.knobs)
        return np.zeros(len(self.places), bool) if found is None else found.values.reshape(-1)

    @property
    @cached
    def underfit(self) -> Numbers:
        """Degree (n,) to which networks are underfit, from 0 to 1; 0 where the training error is not known.

        One half at a training error of half the error of guessing.
        """
        if "train_error" not in self.data or self.data["train_error"].attrs.get("units", "1") != "1":
            return np.zeros(len(self.places))
        share = np.nan_to_num(self.mean("train_error")) / self.guess
        degree = expit((share - UNDERFIT_SHARE) / UNDERFIT_TOLERANCE)
        return np.where(degree > 0.01, degree, 0.0)

    @cached
    def seeds(self, name: str) -> Numbers:
        """Return a variable's means per dense seed, (n, seeds); NaN if not measured."""
        values = seed_means(self.data[name], self.knobs)
        return values.transpose(*(each.name for each in self.axes), "dense_seed").values.reshape(len(self.places), -1)

    @cached
    def mean(self, name: str) -> Numbers:
        """Return a variable's cell means (n,); NaN if not measured."""
        seeds = self.seeds(name)
        count = np.isfinite(seeds).sum(1)
        return np.divide(np.nansum(seeds, 1), count, out=np.full(len(seeds), np.nan), where=count > 0)

    def has(self, name: str) -> bool:
        """Return whether a variable is over all axes, and measured in any cell that is not at chance."""
        axes = {axis.name for axis in self.axes}
        return name in self.data and axes <= set(self.data[name].dims) and bool(self.measured(name).any())

    @property
    def has_test_error(self) -> bool:
        """Whether any cell that is not at chance has a test error."""
        return self.has("test_error")

    @property
    def guess(self) -> float:
        """Error of guessing, the scale of barriers."""
        return float(self.data.attrs.get("chance_error", 0.9)) if self.scale == 1 else 1.0

    @cached
    def predicted(self, name: str) -> tuple[Numbers, Numbers]:
        """Return the posterior mean (n,) and standard deviation (n,) of a surface at the cells."""
        return self.surface(name).predict(self.places)

    @cached
    def drawn(self, name: str, count: int) -> Numbers:
        """Return posterior draws (count, n) of a surface at the cells."""
        return self.surface(name).sample(self.places, count, np.random.default_rng(0))

    @cached
    def measured(self, name: str) -> NDArray[np.bool_]:
        """Return the mask (n,) of the cells a surface is fitted to: measured, not at chance, and not wild."""
        known = np.isfinite(self.mean(name)) & ~self.at_chance
        means = np.where(known, self.transform(name).forward(self.mean(name)), np.nan)
        calm = known & ~wild_cells(means.reshape(self.shape), name).reshape(-1)
        return calm if calm.any() else known

    @cached
    def transform(self, name: str) -> Transform:
        """Return the variance-stabilising transform of a variable."""
        unit = self.guess if name.startswith(CONNECTIVITY) else float(np.nanmedian(self.seeds(name)))
        compared = self.scale == 1 if name.startswith(CONNECTIVITY) else name.endswith("error")
        return transform_of(name, unit, compared and self.data[name].attrs.get("units", "1") == "1")

    @cached
    def surface(self, name: str) -> GaussianProcess:
        """Return the Gaussian process fitted to a variable on its transformed scale."""
        seeds, scale = self.seeds(name), self.transform(name)
        measured = self.measured(name)
        slope = scale.slope(self.mean(name))
        known = variance_by_size(name, self.mean(name), self._measuring(name)) * slope**2
        shape = np.sqrt(variance_by_size(name, self.mean(name), variance_between_seeds(seeds, self.mean(name)))) * slope
        shape = shape if shape[measured].all() else np.ones(len(shape))
        cells = self.places, scale.forward(seeds), self.rows, known, shape
        places, values, rows, known, shape = (array[measured] for array in cells)
        if len(places) > MAX_SURFACE_CELLS:
            block = self._blocks()[measured]
            places, values, known, shape = (_block_means(array, block) for array in (places, values, known, shape))
            _, rows = np.unique(places[:, : len(self.knobs)], axis=0, return_inverse=True)
        return fit(places, values, rows.reshape(-1), known, shape, scale.min_spread)

    def _blocks(self) -> NDArray[np.int64]:
        """Number (n,) of the block of neighbouring cells that each cell is in, with few enough blocks for a surface."""
        width = next(
            width
            for width in itertools.count(2)
            if math.prod(math.ceil(size / width) for size in self.shape) <= MAX_SURFACE_CELLS
        )
        index = np.indices(self.shape) // width
        blocks = [math.ceil(size / width) for size in self.shape]
        return np.ravel_multi_index(tuple(index), blocks).reshape(-1)

    def _measuring(self, name: str) -> Numbers:
        """Variance (n,) of the cell means over images; 0 with one dense seed, whose noise is fitted as a whole."""
        if f"{name}_stderr" in self.data and self.data.sizes.get("dense_seed", 1) > 1:
            images = seed_means(self.data[f"{name}_stderr"] ** 2, self.knobs).mean("dense_seed")
            return images.values.reshape(-1)
        return np.zeros(len(self.places))

    def on_grid(self, values: NDArray[np.generic], *more: str) -> xr.DataArray:
        """Return values of the cells (n, ...) as an array over the axes, sorted as ``data``."""
        names = [each.name for each in self.axes]
        shaped = np.asarray(values).reshape(*self.shape, *np.shape(values)[1:])
        coords = {name: self.data[name].values for name in names}
        return xr.DataArray(shaped, dims=(*names, *more), coords=coords)


def _block_means(values: Numbers, block: NDArray[np.int64]) -> Numbers:
    """Means of values (n, ...) over the cells of each block, ignoring NaN; blocks without cells are left out."""
    _, block = np.unique(block, return_inverse=True)
    flat = values.reshape(len(values), -1)
    there = np.isfinite(flat)
    total, count = np.zeros((block.max() + 1, flat.shape[1])), np.zeros((block.max() + 1, flat.shape[1]))
    np.add.at(total, block, np.where(there, flat, 0.0))
    np.add.at(count, block, there)
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return means.reshape(-1, *values.shape[1:])
