"""Phase diagrams whose answers are known."""

from __future__ import annotations

import numpy as np
import xarray as xr

from regimes.research.studies.synthetic_grids import NOISES, diagram

SEEDS = 4


def world(seed: int = 0, noise: float = 0.02, size: tuple[int, int] = (6, 5)) -> xr.Dataset:
    """A grid whose best temperature is known: the second hottest at low, the second coldest at high densities."""
    data, _ = diagram("diagonal", NOISES["usual"], 0.12, seed, size, SEEDS)
    heat, load = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    best = 0.8 - 0.6 * load
    random = np.random.default_rng(seed)
    shape = (*size, SEEDS, 2)
    error = (0.05 + 0.2 * (1 - load) + 0.5 * (heat - best) ** 2)[..., None, None]
    values = error * np.exp(noise * random.standard_normal(shape))
    data["test_error"] = (("learning_rate", "density", "dense_seed", "retrain_seed"), values)
    dense = 0.03 + 0.1 * (np.linspace(0, 1, size[0]) - 0.2) ** 2
    dense = dense[:, None] * np.exp(noise * random.standard_normal((size[0], SEEDS)))
    data["dense_test_error"] = (("learning_rate", "dense_seed"), dense)
    return data
