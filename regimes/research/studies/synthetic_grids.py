"""Phase diagrams with a known answer: several shapes, some without a regime, and noise like that of real sweeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
# A shape gives, at (hotness u, density v) in the unit square, how far a setting is on the connected side of the first
# border and on the similar side of the second: positive, zero on the border, negative beyond it.
Shape = Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
EVER = 1.0  # a distance beyond which there is no border


def _diagonal(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return v - (0.55 - 0.4 * u), v + 0.9 - 1.3 * u


def _curved(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return v - 0.6 * np.exp(-3 * u), v - (1.4 * u - 0.45) ** 2 - 0.05


def _level(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return v - 0.35 + 0 * u, 0.7 - u + 0.2 * v


def _corner(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return np.hypot(u, v) - 0.55, 1.25 - np.hypot(u, 1 - v)


def _no_barrier(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return EVER + 0 * u, v + 0.75 - 1.3 * u


def _no_dissimilar(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return v - (0.6 - 0.35 * u), EVER + 0 * u


def _barriers_only(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return -EVER + 0 * u, EVER + 0 * u


def _similar_only(u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
    return EVER + 0 * u, EVER + 0 * u


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
    """How values scatter about the truth.

    LMC: a constant part, and one in proportion to the barrier; CKA: in proportion to its distance from 1. A third of
    the variance belongs to the dense network of a row, a third to the dense network in that cell, a third to the pair.

    Attributes:
        lmc: constant part, fraction of error.
        barrier: share of the barrier.
        cka: share of the distance 1 - CKA.
    """

    lmc: float
    barrier: float
    cka: float


# "digits": about what dense seeds differ by in recorded sweeps; see "Noise of the recorded grids" in reports/advice.
NOISES = {
    "calm": Noise(0.003, 0.15, 0.1),
    "usual": Noise(0.006, 0.4, 0.25),
    "rough": Noise(0.012, 0.7, 0.5),
    "digits": Noise(0.003, 0.7, 0.9),
}
SOFTNESS = {"sharp": 0.01, "soft": 0.12}  # of the barrier's rise beyond the border, in axis lengths


def diagram(
    shape: str,
    noise: Noise,
    softness: float,
    seed: int,
    size: tuple[int, int] = (7, 7),
    dense_seeds: int = 3,
    pairs: int = 1,
) -> tuple[xr.Dataset, NDArray[np.int64]]:
    """A grid with ``lmc`` and ``cka`` over (learning_rate, density, dense_seed, pair), and its true regimes (cells).

    The borders are moved about a little by ``seed``, so that they do not fall between the same cells every time.
    """
    random = np.random.default_rng(seed)
    u, v = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    shift = random.uniform(-0.08, 0.08, 2)
    connected, similar = SHAPES[shape](u + shift[0], v + shift[1])
    truth = np.where(connected < 0, 0, np.where(similar < 0, 1, 2))
    barrier = np.where(connected < 0, 0.4 * (1 - np.exp(-np.clip(-connected, 0, None) / softness)), 0.0)
    apart = 0.03 * 10.0 ** (-0.4 * v) * (1 + 7 / (1 + np.exp(np.clip(similar / (0.4 * softness), -50, 50))))
    apart = np.where(connected < 0, np.maximum(apart, 0.15), apart)
    scatter = _scatter(random, (*size, dense_seeds, pairs))
    lmc = -barrier[..., None, None] + scatter * (noise.lmc + noise.barrier * barrier)[..., None, None]
    cka = 1 - apart[..., None, None] * np.exp(noise.cka * _scatter(random, scatter.shape))
    dims = ("learning_rate", "density", "dense_seed", "pair")
    coords = {"learning_rate": np.geomspace(0.01, 1, size[0]), "density": np.geomspace(0.02, 0.8, size[1])}
    return xr.Dataset({"lmc": (dims, np.clip(lmc, -1, 1)), "cka": (dims, np.clip(cka, 0, 1))}, coords), truth


def _scatter(random: np.random.Generator, shape: tuple[int, int, int, int]) -> Numbers:
    """Standard normal noise of which dense networks share two thirds."""
    rows, columns, seeds, pairs = shape
    parts = (rows, 1, seeds, 1), (rows, columns, seeds, 1), (rows, columns, seeds, pairs)
    row, cell, pair = (random.standard_normal(each) for each in parts)
    found: Numbers = (row + cell + pair) / np.sqrt(3.0)
    return found
