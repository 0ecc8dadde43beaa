"""A checked grid as rules see it: cells in a row, each with its place, its values by seed, and smooth surfaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import minimize

from regimes.phases.axes import Axis, axes_of
from regimes.phases.cells import at_chance, cell_stderr, error_scale, seed_means
from regimes.phases.surface import Surface, fit
from regimes.record.grid import knobs_of

Numbers = NDArray[np.float64]

FLOOR = 0.005  # of training error: the noise of LMC is never taken for less than half a percent
CLOSE = 0.005  # CKA beyond 0.995 is not told apart
THIN = 1e-3  # of the usual variance: a cell without any noise is not believed
SMALL = 0.02  # of the median error: errors below are hardly told apart on the logarithmic scale


P = ParamSpec("P")
R = TypeVar("R")


def once(method: Callable[Concatenate[Measured, P], R]) -> Callable[Concatenate[Measured, P], R]:
    """Keep what a method returns with the grid it speaks of."""

    @functools.wraps(method)
    def remembered(self: Measured, *names: P.args, **more: P.kwargs) -> R:
        key = (method.__name__, *map(str, names))
        if key not in self.memory:
            self.memory[key] = method(self, *names, **more)
        found: R = self.memory[key]
        return found

    return remembered


@dataclass(frozen=True)
class Stretch:
    """A scale on which the noise of a measure is about the same everywhere.

    Attributes:
        there: from the measure to the scale.
        back: and back.
        slope: derivative of ``there``.
        least: spread of cells on the scale that is taken for none.
    """

    there: Callable[[Numbers], Numbers]
    back: Callable[[Numbers], Numbers]
    slope: Callable[[Numbers], Numbers]
    least: float


@dataclass(frozen=True, eq=False)
class Measured:
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
    def of(cls, data: xr.Dataset) -> Measured:
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
    @once
    def density(self) -> Numbers:
        """(n,) density of each cell."""
        return np.broadcast_to(np.array(self.axes[-1].values), self.shape).reshape(-1)

    @property
    @once
    def told(self) -> NDArray[np.bool_]:
        """(n,) cells with both LMC and CKA whose networks have learnt something."""
        told = np.isfinite(self.mean("lmc")) & np.isfinite(self.mean("cka"))
        return told & ~self.guessing

    @property
    @once
    def guessing(self) -> NDArray[np.bool_]:
        """(n,) cells at chance."""
        found = at_chance(self.data, self.knobs)
        return np.zeros(len(self.places), bool) if found is None else found.values.reshape(-1)

    @once
    def seeds(self, name: str) -> Numbers:
        """(n, seeds) of a measure, copies and pairs averaged; NaN where not measured."""
        values = seed_means(self.data[name], self.knobs)
        return values.transpose(*(each.name for each in self.axes), "dense_seed").values.reshape(len(self.places), -1)

    @once
    def mean(self, name: str) -> Numbers:
        """(n,) cell means; NaN where not measured."""
        seeds = self.seeds(name)
        count = np.isfinite(seeds).sum(1)
        return np.divide(np.nansum(seeds, 1), count, out=np.full(len(seeds), np.nan), where=count > 0)

    @once
    def stderr(self, name: str) -> Numbers:
        """(n,) standard errors of the cell means, see `cell_stderr`."""
        return cell_stderr(self.data, name, self.knobs).values.reshape(-1)

    @property
    @once
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
        return max(FLOOR, *spreads, FLOOR)

    @property
    @once
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

    @once
    def stretch(self, name: str) -> Stretch:
        """The scale on which a measure is smoothed: asinh(LMC / noise), -log10(1 - CKA), log of an error."""
        if name.startswith("lmc"):
            unit = self.noise_lmc
            return Stretch(
                lambda x: np.arcsinh(x / unit), lambda y: np.sinh(y) * unit, lambda x: 1 / np.hypot(x, unit), 0.5
            )
        if name.startswith("cka"):
            return Stretch(
                lambda x: -np.log10(np.clip(1 - x, CLOSE, None)),
                lambda y: 1 - 10.0**-y,
                lambda x: 1 / (np.clip(1 - x, CLOSE, None) * np.log(10)),
                0.05,
            )
        small = SMALL * float(np.nanmedian(self.seeds(name))) or 1e-6
        return Stretch(
            lambda x: np.log(np.clip(x, 0, None) + small),
            lambda y: np.exp(y) - small,
            lambda x: 1 / (np.clip(x, 0, None) + small),
            0.05,
        )

    @once
    def surface(self, name: str) -> Surface:
        """The smooth surface through a measure, on its stretched scale."""
        seeds, stretch = self.seeds(name), self.stretch(name)
        there = self.measured(name)
        slope = stretch.slope(self.mean(name))
        known = self._by_size(name, self._measuring(name)) * slope**2
        shape = np.sqrt(self._by_size(name, self._between(name))) * slope
        shape = shape if shape[there].all() else np.ones(len(shape))
        return fit(
            self.places[there], stretch.there(seeds[there]), self.rows[there], known[there], shape[there], stretch.least
        )

    def _between(self, name: str) -> Numbers:
        """(n,) variance between dense seeds; NaN where fewer than two are measured."""
        seeds = self.seeds(name)
        count = np.isfinite(seeds).sum(1)
        rest = np.nan_to_num(seeds - self.mean(name)[:, None]) ** 2
        return np.where(count > 1, rest.sum(1) / np.maximum(count - 1, 1), np.nan)

    def _measuring(self, name: str) -> Numbers:
        """(n,) variance of the cell means that images make, or copies where there is one dense seed."""
        if self.data.sizes.get("dense_seed", 1) == 1:
            return self.stderr(name) ** 2
        if f"{name}_stderr" in self.data:
            images = seed_means(self.data[f"{name}_stderr"] ** 2, self.knobs).mean("dense_seed")
            return images.values.reshape(-1)
        return np.zeros(len(self.places))

    def _by_size(self, name: str, variance: Numbers) -> Numbers:
        """(n,) a variance smoothed to ``a + b size^2``.

        A constant part, and one in proportion to the barrier, the distance of CKA from 1, or the error; by maximum
        likelihood for variances of normal values. All cells together tell it far better than the few seeds of one.
        """
        size = np.abs(1 - self.mean(name)) if name.startswith("cka") else np.abs(self.mean(name))
        told = np.isfinite(variance) & np.isfinite(size)
        if not told.any() or not variance[told].any():
            return np.zeros(len(size))
        mean, square = variance[told].mean(), np.nan_to_num(size) ** 2 / (size[told] ** 2).mean()

        def unlikely(logs: Numbers) -> float:
            fitted = np.exp(logs[0]) + np.exp(logs[1]) * square[told]
            return float((np.log(fitted) + variance[told] / mean / fitted).sum())

        found = minimize(unlikely, np.log([0.5, 0.5]), method="L-BFGS-B", bounds=[(np.log(THIN), np.log(10.0))] * 2).x
        fitted: Numbers = mean * (np.exp(found[0]) + np.exp(found[1]) * square)
        return fitted

    def on_grid(self, values: NDArray[np.generic], *more: str) -> xr.DataArray:
        """Values of the cells (n, ...) as an array over the axes, sorted as ``data`` is."""
        names = [each.name for each in self.axes]
        shaped = np.asarray(values).reshape(*self.shape, *np.shape(values)[1:])
        coords = {name: self.data[name].values for name in names}
        return xr.DataArray(shaped, dims=(*names, *more), coords=coords)
