"""Study ``synthetic``: accuracy of the classification and calibration of its probabilities on synthetic grids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regimes.plots.text_table import TextTable
from regimes.regime_map.classify import classify_with_model
from regimes.research.page import Page, Say
from regimes.research.studies.synthetic_grids import HEIGHTS, NOISES, SHAPES, SOFTNESS, synthetic_grid

Numbers = NDArray[np.float64]

# (dense seeds, pairs of each, whether test errors are known) per cell
KNOWN = ((1, 1, False), (1, 3, False), (3, 1, False), (3, 1, True))
FIXED_CUTS = {"lmc": -0.02, "cka": 0.9}  # baseline: a barrier beyond the usual noise, and a conventional CKA
METHODS: dict[str, dict[str, Any]] = {"transition": {}, "fixed cuts": FIXED_CUTS}
SCORES = {
    "right": ("right", ".1%"),
    "poorly": ("I or II", ".1%"),
    "border": ("border", ".2f"),
    "brier": ("Brier", ".2f"),
}
SCORE_HEAD = [f"{score}, {method}" for score, _ in SCORES.values() for method in METHODS]
PROBABILITY_BINS = (0.0, 0.6, 0.8, 0.9, 0.98, 1.0)
BORDER_POINTS = 101  # resolution of the border along the density axis
TITLE = "Synthetic phase diagrams: accuracy of regimes and calibration of their probabilities"
PARAGRAPHS = [
    f"{len(SHAPES)} shapes of phase diagram ({', '.join(SHAPES)}), 7 x 7 cells, with randomly displaced borders. At "
    f"the border of I the barrier falls by {', '.join(f'{100 * height:.0f}' for height in HEIGHTS)} points of training "
    "error, within one step or two; on the connected side it still reaches up to a quarter of that at the lowest "
    "densities. II-A is hotter than the temperature at which similarity peaks. Four levels of noise of LMC and CKA, "
    "two thirds of it shared by copies of one dense network. Each kind is drawn once, with a seed of its own, "
    "classified, and compared with the truth. Grids that are all I behind a cliff of 10 points are left out: nothing "
    "shows it.",
    "Baseline: fixed cuts, LMC -0.02 (about where a barrier differs from zero) and CKA 0.9.",
    "*Right*: share of cells with the true regime. *I or II*: share of cells rightly in I or not. *Border*: distance "
    "between the true and the estimated border of I along density, in cells. *Brier*: squared error of the three "
    "probabilities, 0 to 2. *Predicted, observed*: among cells whose regime has a probability in the given range, the "
    "mean probability and the share of cells with that regime; equal if calibrated.",
]


_Kind = tuple[tuple[int, int, bool], str, float, str]  # known, noise, height, shape


@dataclass(frozen=True)
class _Case:
    method: str
    known: tuple[int, int, bool]
    noise: str
    height: float
    shape: str
    right: float
    poorly: float
    border: float
    brier: float
    said: Numbers  # (cells,) probability of the predicted regime
    was: NDArray[np.bool_]  # (cells,)


def study(out: Path, runs: Path, say: Say) -> Page:
    """Classify grids of every kind and compare with their true regimes."""
    cases = list(_cases(say))
    tables = [_by_noise(cases), _by_height(cases), _by_shape(cases), _by_probability(cases)]
    return Page("synthetic", TITLE, PARAGRAPHS, tables, {"calibration": _figure(cases)})


def _cases(say: Say) -> Iterator[_Case]:
    for known in KNOWN:
        found = []
        kinds = itertools.product(NOISES, HEIGHTS, SOFTNESS.values(), SHAPES)
        for seed, (noise, height, softness, shape) in enumerate(kinds):
            if shape == "I alone" and height == min(HEIGHTS):
                continue
            seeds, pairs, errors = known
            grid, truth = synthetic_grid(
                shape, NOISES[noise], softness, seed, dense_seeds=seeds, pairs=pairs, height=height, errors=errors
            )
            line = _true_border(shape, seed)
            kind = known, noise, height, shape
            found += [_evaluate(method, grid, truth, line, kind) for method in METHODS]
        mean = {method: np.mean([case.right for case in found if case.method == method]) for method in METHODS}
        say(f"{_name(known)}: " + ", ".join(f"{method} {value:.1%} right" for method, value in mean.items()))
        yield from found


def _name(known: tuple[int, int, bool]) -> str:
    seeds, pairs, errors = known
    return f"{_count(seeds, 'dense seed')}, {_count(pairs, 'pair')}" + (", test errors" if errors else "")


def _evaluate(method: str, grid: xr.Dataset, truth: NDArray[np.int64], line: Numbers, kind: _Kind) -> _Case:
    labelled, _, classification = classify_with_model(grid, **METHODS[method])
    chances, labels = classification.probability, labelled["regime"].values
    fine, heat = np.linspace(0, 1, BORDER_POINTS), np.linspace(0, 1, len(labels))
    places = np.stack(np.meshgrid(heat, fine, indexing="ij"), -1).reshape(-1, 2)
    assert classification.regions is not None
    poorly = classification.regions.probabilities(places)[:, 0].reshape(len(heat), BORDER_POINTS) >= 0.5
    border = float(np.abs(poorly.mean(1) - line).mean()) * (labels.shape[1] - 1)
    flat = truth.reshape(-1)
    brier = float(((chances - np.eye(3)[flat]) ** 2).sum(1).mean())
    right, two = float((labels == truth).mean()), float(((labels == 0) == (truth == 0)).mean())
    return _Case(method, *kind, right, two, border, brier, chances.max(1), chances.argmax(1) == flat)


def _true_border(shape: str, seed: int, rows: int = 7) -> Numbers:
    """Density coordinate up to which each row is in regime I, from 0 to 1."""
    shift = np.random.default_rng(seed).uniform(-0.08, 0.08, 2)
    u, v = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, 1001), indexing="ij")
    share: Numbers = (SHAPES[shape](u + shift[0], v + shift[1])[0] < 0).mean(1)
    return share


def _scores(cases: Sequence[_Case]) -> dict[str, float]:
    return {
        name: float(np.mean([getattr(case, name) for case in cases])) for name in ("right", "poorly", "border", "brier")
    }


def _score_rows(cases: Sequence[_Case]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Formatted scores of all methods, and the scores."""
    facts = {method: _scores([case for case in cases if case.method == method]) for method in METHODS}
    shown = []
    for name, (_, form) in SCORES.items():
        shown += [f"{facts[method][name]:{form}}" for method in METHODS]
    return shown, facts


def _by_noise(cases: Sequence[_Case]) -> TextTable:
    rows: list[list[str]] = [["per cell", "noise", *SCORE_HEAD]]
    facts: list[dict[str, Any]] = []
    for known, noise in itertools.product(KNOWN, NOISES):
        shown, scores = _score_rows([case for case in cases if (case.known, case.noise) == (known, noise)])
        rows.append([_name(known), noise, *shown])
        facts.append({"known": _name(known), "noise": noise, **scores})
    levels = (f"{name} {each.lmc:g}, {each.barrier:g}, {each.cka:g}" for name, each in NOISES.items())
    notes = [
        f"noise: constant part of LMC, share of the barrier, share of 1 - CKA: {'; '.join(levels)}",
        "'digits' is the noise of the sweeps in reports/advice, whose CKA varies most where there are barriers",
    ]
    return TextTable("By noise, over all shapes and cliffs", rows, notes, facts)


def _by_height(cases: Sequence[_Case]) -> TextTable:
    rows: list[list[str]] = [["per cell", "cliff", *SCORE_HEAD]]
    facts: list[dict[str, Any]] = []
    for known, height in itertools.product(KNOWN, HEIGHTS):
        shown, scores = _score_rows([case for case in cases if (case.known, case.height) == (known, height)])
        rows.append([_name(known), f"{100 * height:.0f} points", *shown])
        facts.append({"known": _name(known), "height": height, **scores})
    return TextTable("By height of the cliff, over all shapes and noise levels", rows, [], facts)


def _by_shape(cases: Sequence[_Case]) -> TextTable:
    rows: list[list[str]] = [["shape", *(_name(known) for known in KNOWN)]]
    facts: list[dict[str, Any]] = []
    for shape in SHAPES:
        kinds = [("transition", known, shape) for known in KNOWN]
        shares = [
            float(np.mean([case.right for case in cases if (case.method, case.known, case.shape) == kind]))
            for kind in kinds
        ]
        rows.append([shape, *(f"{share:.1%}" for share in shares)])
        facts.append({"shape": shape, "right": shares})
    return TextTable("Right cells by shape, rule 'transition', over all noise levels and cliffs", rows, [], facts)


def _by_probability(cases: Sequence[_Case]) -> TextTable:
    ranges = [f"{low:.0%} to {high:.0%}" for low, high in itertools.pairwise(PROBABILITY_BINS)]
    rows: list[list[str]] = [["method", "per cell", *ranges]]
    facts: list[dict[str, Any]] = []
    for method, known in itertools.product(METHODS, KNOWN):
        bins = _reliability([case for case in cases if (case.method, case.known) == (method, known)])
        shown = ["-" if not share else f"{said:.2f}, {was:.2f} ({share:.0%})" for said, was, share in bins]
        rows.append([method, _name(known), *shown])
        facts.append({"method": method, "known": _name(known), "bins": bins})
    notes = ["predicted, observed (share of all cells in this range); over all shapes, noise levels and cliffs"]
    return TextTable("Calibration of the probabilities", rows, notes, facts)


def _reliability(cases: Sequence[_Case]) -> list[tuple[float, float, float]]:
    """(mean predicted probability, observed share, share of all cells) in each range."""
    said, was = np.concatenate([each.said for each in cases]), np.concatenate([each.was for each in cases])
    found = []
    for low, high in itertools.pairwise(PROBABILITY_BINS):
        inside = (said > low) & (said <= high)
        found.append(
            (float(said[inside].mean()), float(was[inside].mean()), float(inside.mean()))
            if inside.any()
            else (float("nan"), float("nan"), 0.0)
        )
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _figure(cases: Sequence[_Case]) -> Figure:
    """Draw observed against predicted probability for the rule 'transition', by what is known per cell."""
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.33, 1], [0.33, 1], color="#999999", lw=1, zorder=1)
    styles = zip(KNOWN, ("o", "s", "^", "D"), ("#111111", "#a23b14", "#4a8fb5", "#c9962b"), strict=False)
    for known, marker, colour in styles:
        chosen = [case for case in cases if (case.method, case.known) == ("transition", known)]
        bins = np.array([bin_ for bin_ in _reliability(chosen) if bin_[2] > 0.002])
        axes.plot(bins[:, 0], bins[:, 1], marker=marker, color=colour, lw=1.3, ms=6, label=_name(known))
    axes.set(xlabel="predicted probability", ylabel="observed share of cells", xlim=(0.33, 1.02), ylim=(0.2, 1.02))
    axes.legend(frameon=False, title="per cell", loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
