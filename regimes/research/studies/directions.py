"""Study ``directions``: does the landscape of one pruned network say whether hotter or colder is better?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from regimes.errors import UserError
from regimes.hpo.pruned.cell_direction import features
from regimes.knobs import KNOBS
from regimes.plots.text_table import TextTable
from regimes.record.grid import load_netcdf
from regimes.registry import lookup
from regimes.research.page import Page, Say
from regimes.research.studies.advisers import RECORDED

Numbers = NDArray[np.float64]
MIN_GAIN = 0.003  # gain in test error below which neither direction counts as better
PENALTY = 1.0  # inverse strength of the regression's L2 penalty, in cells, on standardised features
GRIDS = {
    **{name: path for name, path in RECORDED.items() if name.startswith("digits")},
    "MNIST-1D, batch size": Path("reports/mnist1d-study/grid.nc"),
    "MNIST-1D, learning rate": Path("reports/mnist1d-learning-rate/grid.nc"),
    "MNIST-1D, epochs": Path("reports/mnist1d-epochs/grid.nc"),
    "text, learning rate": Path("reports/text/grid.nc"),
    "CIFAR-10, epochs": Path("reports/cifar10-cpu/grid.nc"),
}
COLUMNS = ("barrier", "CKA", "training error", "position")
WAYS = {
    "barrier": (0,),
    "training error": (2,),
    "landscape": (0, 1, 2),
    "position": (3,),
    "landscape and position": (0, 1, 2, 3),
}
TITLE = "Does one pruned network say whether hotter or colder is better?"
PARAGRAPHS = [
    "Cells of recorded grids that have a hotter and a colder neighbour, at each density. The truth: whether the best "
    "hotter or the best colder temperature has the lower mean test error after retraining; cells that neither improves "
    f"by {100 * MIN_GAIN:g} points are left out. Asked is a logistic regression on what two copies of the cell's own "
    "network show - barrier, CKA, training error, errors in units of the error of guessing -, with and without the "
    "position of its temperature in the range, which every search knows. Each grid is judged by a regression fitted to "
    "the others, which have equal weights.",
]


@dataclass(frozen=True)
class KnownDirections:
    """Cells of a grid.

    Attributes:
        values: (n, 4) features, see `COLUMNS`.
        hotter: (n,) whether a hotter temperature is better.
    """

    values: Numbers
    hotter: NDArray[np.bool_]


def study(out: Path, runs: Path, say: Say) -> Page:
    """Judge the direction from one cell on every grid, fitted to the others."""
    grids = {}
    for name, path in GRIDS.items():
        if not path.exists():
            raise UserError(f"{path}: grid not found; run this study in a clone of the repository")
        data = load_netcdf(path)
        if {"lmc", "cka", "train_error"} <= set(data):
            grids[name] = cells_of(data)
            say(f"{name}: {len(grids[name].hotter)} cells")
    fitted = fit(list(grids.values()), (0, 1, 2))
    weights = dict(zip(("intercept", *COLUMNS), (float(each) for each in fitted), strict=False))
    told = "Fitted to all grids, log odds of hotter: " + ", ".join(f"{n} {each:+.2f}" for n, each in weights.items())
    return Page("directions", TITLE, [*PARAGRAPHS, told + "."], [_table(grids)], facts=weights)


def cells_of(data: xr.Dataset) -> KnownDirections:
    """Return the cells of a grid of one knob and density whose direction is known."""
    (knob,) = (name for name in KNOBS if name in data.sizes)
    order = np.argsort(data[knob].values * (1 if lookup(KNOBS, knob, "knob").hotter == "larger" else -1))

    def mean(name: str) -> Numbers:
        rest = [dim for dim in data[name].dims if dim not in (knob, "density")]
        return np.asarray(data[name].mean(rest).transpose(knob, "density").values[order])

    lmc, cka, train, test = (mean(name) for name in ("lmc", "cka", "train_error", "test_error"))
    chance = float(data.attrs.get("chance_error", 0.9))
    rows, hotter, last = list[list[float]](), list[bool](), len(order) - 1
    for place in range(1, last):
        for column in range(test.shape[1]):
            here, shown = test[place, column], (lmc[place, column], cka[place, column], train[place, column])
            gains = here - test[place + 1 :, column].min(), here - test[:place, column].min()
            if np.isfinite([*gains, *shown]).all() and max(gains) > MIN_GAIN:
                rows.append([*features(*shown, chance), place / last])
                hotter.append(bool(gains[0] > gains[1]))
    return KnownDirections(np.array(rows).reshape(len(rows), len(COLUMNS)), np.array(hotter))


def fit(grids: list[KnownDirections], columns: tuple[int, ...]) -> Numbers:
    """Return intercept and weights (1 + k,) of a logistic regression on some features; grids have equal weights."""
    values = np.concatenate([each.values for each in grids])[:, columns]
    hotter = np.concatenate([each.hotter for each in grids])
    weights = np.concatenate([np.full(len(each.hotter), 1 / len(each.hotter)) for each in grids])
    centre, spread = values.mean(0), values.std(0)
    model = LogisticRegression(C=PENALTY)
    model.fit((values - centre) / spread, hotter, sample_weight=weights * len(weights) / weights.sum())
    slopes = model.coef_[0] / spread
    return np.concatenate([[model.intercept_[0] - slopes @ centre], slopes])


def _table(grids: dict[str, KnownDirections]) -> TextTable:
    head = ["grid", "cells", "always the more frequent", *WAYS]
    rows, facts, shares = [head], list[dict[str, Any]](), list[list[float]]()
    for name, here in grids.items():
        others = [each for other, each in grids.items() if other != name]
        right = [max(here.hotter.mean(), 1 - here.hotter.mean())]
        for columns in WAYS.values():
            intercept, *slopes = fit(others, columns)
            right.append(float(((here.values[:, columns] @ slopes + intercept > 0) == here.hotter).mean()))
        rows.append([name, str(len(here.hotter)), *(f"{each:.0%}" for each in right)])
        facts.append({"grid": name, "cells": len(here.hotter), "right": dict(zip(head[2:], right, strict=True))})
        shares.append(right)
    rows.append(["mean", "", *(f"{each:.0%}" for each in np.mean(shares, axis=0))])
    notes = [
        "share of cells whose direction is right; always the more frequent: the better constant answer, in hindsight"
    ]
    return TextTable("Right directions, each grid judged by the others", rows, notes, facts)
