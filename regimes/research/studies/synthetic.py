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
from regimes.regime_map.landscape_rules import regimes_at
from regimes.research.page import Page, Say
from regimes.research.studies.synthetic_grids import NOISES, SHAPES, SOFTNESS, synthetic_grid

Numbers = NDArray[np.float64]

DRAWS_PER_KIND = 6  # grids of each kind
SEEDS_AND_PAIRS = ((1, 1), (1, 3), (3, 1), (5, 1))  # (dense seeds, pairs of each) per cell
RULES = ("smooth", "separation")
PROBABILITY_BINS = (0.0, 0.6, 0.8, 0.9, 0.98, 1.0)
BORDER_POINTS = 101  # resolution of the border along the density axis
TITLE = "Synthetic phase diagrams: accuracy of regimes and calibration of their probabilities"
PARAGRAPHS = [
    f"{len(SHAPES)} shapes of phase diagram ({', '.join(SHAPES)}), 7 x 7 cells, randomly displaced borders, a barrier "
    "that rises steeply or gradually beyond the border, and four levels of noise of LMC and CKA, two thirds of it "
    f"shared by copies of one dense network. Each kind is drawn {DRAWS_PER_KIND} times, classified, and compared with "
    "the truth.",
    "*Right*: share of cells with the true regime. *Border*: distance between the true and the estimated border of I "
    "along density, in cells. *Brier*: squared error of the three probabilities, 0 to 2. *Predicted, observed*: among "
    "cells whose regime has a probability in the given range, the mean probability and the share of cells with that "
    "regime; equal if calibrated.",
]


@dataclass(frozen=True)
class _Case:
    rule: str
    seeds: int
    pairs: int
    noise: str
    shape: str
    right: float
    border: float
    brier: float
    said: Numbers  # (cells,) probability of the predicted regime
    was: NDArray[np.bool_]  # (cells,)


def study(out: Path, runs: Path, say: Say) -> Page:
    """Classify grids of every kind and compare with their true regimes."""
    cases = list(_cases(say))
    figure = _figure(cases)
    tables = [_by_noise(cases), _by_shape(cases), _by_probability(cases)]
    return Page("synthetic", TITLE, PARAGRAPHS, tables, {"calibration": figure})


def _cases(say: Say) -> Iterator[_Case]:
    for seeds, pairs in SEEDS_AND_PAIRS:
        found = []
        for noise, softness, shape, seed in itertools.product(NOISES, SOFTNESS.values(), SHAPES, range(DRAWS_PER_KIND)):
            grid, truth = synthetic_grid(shape, NOISES[noise], softness, seed, dense_seeds=seeds, pairs=pairs)
            line = _true_border(shape, seed)
            found += [_evaluate(rule, grid, truth, line, (seeds, pairs, noise, shape)) for rule in RULES]
        mean = {rule: np.mean([each.right for each in found if each.rule == rule]) for rule in RULES}
        say(f"{seeds} seeds, {pairs} pairs: " + ", ".join(f"{rule} {value:.1%} right" for rule, value in mean.items()))
        yield from found


def _evaluate(rule: str, grid: xr.Dataset, truth: NDArray[np.int64], line: Numbers, kind: tuple[Any, ...]) -> _Case:
    labelled, measured, classification = classify_with_model(grid, rule)
    chances = classification.probability
    exact = np.eye(3)[truth.reshape(-1)]
    labels = labelled["regime"].values
    if rule == "smooth" and classification.cut_samples is not None:
        fine = np.linspace(0, 1, BORDER_POINTS)
        heat = np.linspace(0, 1, len(labels))
        places = np.stack(np.meshgrid(heat, fine, indexing="ij"), -1).reshape(-1, 2)
        density = measured.density_axis.value(places[:, 1])
        poorly = (
            regimes_at(measured, classification.cut_samples, places, density)[:, 0].reshape(len(heat), BORDER_POINTS)
            >= 0.5
        )
        own = poorly.sum(1) / BORDER_POINTS
    else:
        count = (labels == 0).sum(1)
        own = np.where(count == 0, 0.0, np.where(count == labels.shape[1], 1.0, (count - 0.5) / (labels.shape[1] - 1)))
    border = float(np.abs(own - line).mean()) * (labels.shape[1] - 1)
    said, was = chances.max(1), chances.argmax(1) == truth.reshape(-1)
    seeds, pairs, noise, shape = kind
    brier = float(((chances - exact) ** 2).sum(1).mean())
    return _Case(rule, seeds, pairs, noise, shape, float((labels == truth).mean()), border, brier, said, was)


def _true_border(shape: str, seed: int, rows: int = 7) -> Numbers:
    """Density coordinate up to which each row is in regime I, from 0 to 1."""
    shift = np.random.default_rng(seed).uniform(-0.08, 0.08, 2)
    u, v = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, 1001), indexing="ij")
    share: Numbers = (SHAPES[shape](u + shift[0], v + shift[1])[0] < 0).mean(1)
    return share


def _by_noise(cases: Sequence[_Case]) -> TextTable:
    head = ["per cell", "noise", *(f"{what}, {rule}" for what in ("right", "border", "Brier") for rule in RULES)]
    rows, facts = [head], []
    for (seeds, pairs), noise in itertools.product(SEEDS_AND_PAIRS, NOISES):
        chosen = [each for each in cases if (each.seeds, each.pairs, each.noise) == (seeds, pairs, noise)]
        row = {"seeds": seeds, "pairs": pairs, "noise": noise}
        for what, rule in itertools.product(("right", "border", "brier"), RULES):
            row[f"{what}_{rule}"] = float(np.mean([getattr(each, what) for each in chosen if each.rule == rule]))
        shown = [f"{row[f'right_{rule}']:.1%}" for rule in RULES]
        shown += [f"{row[f'{what}_{rule}']:.2f}" for what in ("border", "brier") for rule in RULES]
        rows.append([f"{_count(seeds, 'dense seed')}, {_count(pairs, 'pair')}", noise, *shown])
        facts.append(row)
    levels = (f"{name} {each.lmc:g}, {each.barrier:g}, {each.cka:g}" for name, each in NOISES.items())
    notes = [
        f"noise: constant part of LMC, share of the barrier, share of 1 - CKA: {'; '.join(levels)}",
        "'digits' is the noise of the sweeps in reports/advice, whose CKA varies most where there are barriers",
    ]
    return TextTable("By noise, over all shapes", rows, notes, facts)


def _by_shape(cases: Sequence[_Case]) -> TextTable:
    rows, facts = (
        [["shape", *(f"{_count(seeds, 'seed')}, {_count(pairs, 'pair')}" for seeds, pairs in SEEDS_AND_PAIRS)]],
        [],
    )
    for shape in SHAPES:
        shares = []
        for seeds, pairs in SEEDS_AND_PAIRS:
            kind = ("smooth", seeds, pairs, shape)
            found = [each.right for each in cases if (each.rule, each.seeds, each.pairs, each.shape) == kind]
            shares.append(float(np.mean(found)))
        rows.append([shape, *(f"{each:.1%}" for each in shares)])
        facts.append({"shape": shape, "right": shares})
    return TextTable("Right cells by shape, rule 'smooth', over all noise levels", rows, [], facts)


def _by_probability(cases: Sequence[_Case]) -> TextTable:
    ranges = [f"{low:.0%} to {high:.0%}" for low, high in itertools.pairwise(PROBABILITY_BINS)]
    rows, facts = [["rule", "per cell", *ranges]], []
    for rule, (seeds, pairs) in itertools.product(RULES, SEEDS_AND_PAIRS):
        bins = _reliability([each for each in cases if (each.rule, each.seeds, each.pairs) == (rule, seeds, pairs)])
        shown = ["-" if not each[2] else f"{each[0]:.2f}, {each[1]:.2f} ({each[2]:.0%})" for each in bins]
        rows.append([rule, f"{_count(seeds, 'dense seed')}, {_count(pairs, 'pair')}", *shown])
        facts.append({"rule": rule, "seeds": seeds, "pairs": pairs, "bins": bins})
    notes = ["predicted, observed (share of all cells in this range); over all shapes and noise levels"]
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
    """Draw observed against predicted probability for rule 'smooth', by seeds and pairs per cell."""
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.33, 1], [0.33, 1], color="#999999", lw=1, zorder=1)
    styles = zip(SEEDS_AND_PAIRS, ("o", "s", "^", "D"), ("#111111", "#a23b14", "#4a8fb5", "#c9962b"), strict=False)
    for (seeds, pairs), marker, colour in styles:
        chosen = [each for each in cases if (each.rule, each.seeds, each.pairs) == ("smooth", seeds, pairs)]
        bins = np.array([each for each in _reliability(chosen) if each[2] > 0.002])
        label = f"{_count(seeds, 'dense seed')}, {_count(pairs, 'pair')}"
        axes.plot(bins[:, 0], bins[:, 1], marker=marker, color=colour, lw=1.3, ms=6, label=label)
    axes.set(xlabel="predicted probability", ylabel="observed share of cells", xlim=(0.33, 1.02), ylim=(0.2, 1.02))
    axes.legend(frameon=False, title="per cell", loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
