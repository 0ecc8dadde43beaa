"""Synthetic grids with known regimes: several shapes, some lacking a regime, with noise as in real sweeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import expit

Numbers = NDArray[np.float64]
# Maps (temperature u, density v) in the unit square to the signed distances from the border to regime I (positive where
# connected) and from the border between II-A and II-B (positive where similar).
Shape = Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
NO_BORDER = 1.0  # constant distance of a shape without that border


def _diagonal(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return v - (0.55 - 0.4 * u), v + 0.9 - 1.3 * u


def _curved(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return v - 0.6 * np.exp(-3 * u), 0.6 - u + 0.4 * v**2


def _level(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return v - 0.35 + 0 * u, 0.7 - u + 0.2 * v


def _corner(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return np.hypot(u, v) - 0.55, 1.25 - np.hypot(u, 1 - v)


def _no_barrier(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return NO_BORDER + 0 * u, v + 0.75 - 1.3 * u


def _no_dissimilar(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return v - (0.6 - 0.35 * u), NO_BORDER + 0 * u


def _barriers_only(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return -NO_BORDER + 0 * u, NO_BORDER + 0 * u


def _similar_only(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return NO_BORDER + 0 * u, NO_BORDER + 0 * u


SHAPES: dict[str, Shape] = {
    "diagonal": _diagonal,
    "curved": _curved,
    "level": _level,
    "corner": _corner,
    "no I": _no_barrier,
    "no II-A": _no_dissimilar,
    "I alone": _barriers_only,
    "II-B alone": _similar_only,
}


@dataclass(frozen=True)
class Noise:
    """Noise of LMC and CKA.

    The noise of LMC has a constant part and one proportional to the barrier; that of CKA is proportional to 1 - CKA.
    A third of the variance is due to the dense network of a row, a third to the dense network in the cell, a third to
    the pair.

    Attributes:
        lmc: constant part, as a fraction of error.
        barrier: part proportional to the barrier.
        cka: part proportional to 1 - CKA.
        error: of test errors, proportional to them.
    """

    lmc: float
    barrier: float
    cka: float
    error: float = 0.03


# "digits": about the noise between dense seeds in recorded sweeps; see "Noise of the recorded grids" in reports/advice.
NOISES = {
    "calm": Noise(0.003, 0.15, 0.1),
    "usual": Noise(0.006, 0.4, 0.25),
    "rough": Noise(0.012, 0.7, 0.5),
    "digits": Noise(0.003, 0.7, 0.9),
}
HEIGHTS = (0.1, 0.3, 0.6)  # of the cliff, as fractions of training error
SOFTNESS = {"sharp": 0.01, "soft": 0.04}  # scale of the logistic fall across the border, in axis lengths


def synthetic_grid(
    shape: str,
    noise: Noise,
    softness: float,
    seed: int,
    size: tuple[int, int] = (7, 7),
    dense_seeds: int = 3,
    pairs: int = 1,
    height: float = 0.4,
    errors: bool = False,
) -> tuple[xr.Dataset, NDArray[np.int64]]:
    """Return a grid with ``lmc`` and ``cka`` over (learning_rate, density, dense_seed, pair), and its true regimes.

    The barrier falls off a cliff at the border of I, from a top that decreases with density to a foot of up to a
    quarter of its height. ``1 - CKA`` is smallest at the border between II-A and II-B, and increases steeply towards
    hotter and slowly towards colder temperatures.

    Args:
        shape: a name in `SHAPES`.
        noise: noise of LMC and CKA.
        softness: scale of the logistic fall across the border of I, in axis lengths.
        seed: seed of the noise and of a small random displacement of the borders.
        size: number of learning rates and densities.
        dense_seeds: number of dense seeds.
        pairs: number of pairs per dense seed.
        height: height of the cliff at the lowest density, a fraction of training error.
        errors: also return ``test_error``, lowest at the border between II-A and II-B and higher beyond the cliff.
    """
    random = np.random.default_rng(seed)
    u, v = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    shift = random.uniform(-0.08, 0.08, 2)
    connected, similar = SHAPES[shape](u + shift[0], v + shift[1])
    truth = np.where(connected < 0, 0, np.where(similar < 0, 1, 2))
    beyond = expit(-connected / softness)
    barrier = height * (0.25 * 10.0 ** (-1.5 * v) + (1 - 0.4 * v) * beyond)
    hotter, colder = np.clip(-similar, 0, None), np.clip(similar, 0, None)
    worse = 1 + 8 * hotter + 0.8 * colder
    apart = np.clip(0.03 * 10.0 ** (-0.4 * v) * worse + 0.3 * height * beyond, 0, 0.9)
    scatter = _scatter(random, (*size, dense_seeds, pairs))
    lmc = -barrier[..., None, None] + scatter * (noise.lmc + noise.barrier * barrier)[..., None, None]
    cka = 1 - apart[..., None, None] * np.exp(noise.cka * _scatter(random, scatter.shape))
    dims = ("learning_rate", "density", "dense_seed", "pair")
    coords = {"learning_rate": np.geomspace(0.01, 1, size[0]), "density": np.geomspace(0.02, 0.8, size[1])}
    variables: dict[str, tuple[tuple[str, ...], Numbers]] = {
        "lmc": (dims, np.clip(lmc, -1, 1)),
        "cka": (dims, np.clip(cka, 0, 1)),
    }
    if errors:
        error = (0.05 + 0.1 * (1 - v)) * (1 + 0.6 * hotter + 0.1 * colder) + 0.3 * height * beyond
        drawn = error[..., None, None] * np.exp(noise.error * _scatter(random, (*size, dense_seeds, 1)))
        variables["test_error"] = (dims[:3], np.clip(drawn, 0, 1)[..., 0])
    return xr.Dataset(variables, coords), truth


def _scatter(random: np.random.Generator, shape: tuple[int, int, int, int]) -> Numbers:
    """Standard normal noise; two thirds of its variance are shared by cells or pairs of one dense network."""
    rows, columns, seeds, pairs = shape
    parts = (rows, 1, seeds, 1), (rows, columns, seeds, 1), (rows, columns, seeds, pairs)
    row, cell, pair = (random.standard_normal(each) for each in parts)
    found: Numbers = (row + cell + pair) / np.sqrt(3.0)
    return found
