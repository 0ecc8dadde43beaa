"""Phase diagrams whose answers are known."""

from __future__ import annotations

import numpy as np
import xarray as xr

from regimes.research.studies.synthetic_grids import NOISES, synthetic_grid

SEEDS = 4
EPOCHS = [5, 10, 20, 40, 80, 160]
DENSITY = [0.03, 0.05, 0.08, 0.14, 0.3, 0.8]


def world(seed: int = 0, noise: float = 0.02, size: tuple[int, int] = (6, 5)) -> xr.Dataset:
    """A grid whose best temperature is known: the second hottest at low, the second coldest at high densities."""
    data, _ = synthetic_grid("diagonal", NOISES["usual"], 0.12, seed, size, SEEDS)
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


def diagram(
    seed: int, noise: float = 0.005, barrier: float = 0.35, dissimilar: float = 1.0, pairs: int = 3
) -> tuple[xr.Dataset, np.ndarray]:
    """A phase diagram with known borders: I where cold and sparse, II-A in the two hottest rows, II-B elsewhere.

    The barrier jumps at the border of I; similarity peaks in the third row.
    """
    rng = np.random.default_rng(seed)
    cold = np.arange(6)[:, None] / 5
    dense = np.arange(6)[None, :] / 5
    poorly = (dense < 0.15 + 0.4 * cold) & (barrier > 0)
    truth = np.where(poorly, 0, np.where((cold > 0.3) | (dissimilar == 0), 2, 1)) + 0 * dense.astype(int)
    depth = barrier * (0.7 + 0.3 * rng.random((6, 6)))
    lmc = np.where(truth == 0, -depth, 0.0)[..., None] + noise * rng.standard_normal((6, 6, pairs))
    away = dissimilar * (6 * np.clip(0.4 - cold, 0, None) + 4 * np.clip(cold - 0.4, 0, None))
    distance = 0.06 * (1 + away + 1.5 * (truth == 0)) * (1.4 - 0.8 * dense)
    cka = np.clip(1 - distance[..., None] * np.exp(0.1 * rng.standard_normal((6, 6, pairs))), 0, 1)
    dims = ("epochs", "density", "pair")
    return xr.Dataset({"lmc": (dims, lmc), "cka": (dims, cka)}, {"epochs": EPOCHS, "density": DENSITY}), truth
