"""Are regimes found, and are their probabilities right? Phase diagrams with a known answer, many times over."""

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
from regimes.research.studies.synthetic_grids import NOISES, SHAPES, SOFTNESS, diagram

Numbers = NDArray[np.float64]

TIMES = 6  # diagrams of each kind
BEHIND = ((1, 1), (1, 3), (3, 1), (5, 1))  # (dense seeds, pairs of each) behind a cell
RULES = ("smooth", "separation")
BINS = (0.0, 0.6, 0.8, 0.9, 0.98, 1.0)
LINES = 101  # places along the density axis at which the border is looked for
TITLE = "Synthetic phase diagrams: are regimes found, and are their probabilities right?"
WORDS = [
    f"{len(SHAPES)} shapes of phase diagram ({', '.join(SHAPES)}), 7 x 7 cells, their borders moved about at random, "
    "a barrier that rises at once or softly beyond the border, and four levels of noise about LMC and CKA, two thirds "
    f"of it shared by what comes from one dense network. Each kind is drawn {TIMES} times, classified by the rule, and "
    "held against the truth.",
    "*Right*: cells with the true regime. *Border*: distance between the true border of I and the one found, along "
    "density, in cells. *Brier*: squared error of the three probabilities, 0 to 2. *Said, was*: among cells whose "
    "regime has a probability in that range, the mean probability, and how often it was the true one: calibrated "
    "means equal.",
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
    said: Numbers  # (cells,) probability of the regime named
    was: NDArray[np.bool_]  # (cells,)


def study(out: Path, runs: Path, say: Say) -> Page:
    """Classify diagrams of every kind and count."""
    cases = list(_cases(say))
    figure = _figure(cases)
    sheets = [_by_noise(cases), _by_shape(cases), _by_probability(cases)]
    return Page("synthetic", TITLE, WORDS, sheets, {"calibration": figure})


def _cases(say: Say) -> Iterator[_Case]:
    for seeds, pairs in BEHIND:
        found = []
        for noise, softness, shape, seed in itertools.product(NOISES, SOFTNESS.values(), SHAPES, range(TIMES)):
            grid, truth = diagram(shape, NOISES[noise], softness, seed, dense_seeds=seeds, pairs=pairs)
            line = _true_border(shape, seed)
            found += [_judged(rule, grid, truth, line, (seeds, pairs, noise, shape)) for rule in RULES]
        mean = {rule: np.mean([each.right for each in found if each.rule == rule]) for rule in RULES}
        say(f"{seeds} seeds, {pairs} pairs: " + ", ".join(f"{rule} {value:.1%} right" for rule, value in mean.items()))
        yield from found


def _judged(rule: str, grid: xr.Dataset, truth: NDArray[np.int64], line: Numbers, kind: tuple[Any, ...]) -> _Case:
    labelled, measured, verdict = classify_with_model(grid, rule)
    chances = verdict.probability
    exact = np.eye(3)[truth.reshape(-1)]
    labels = labelled["regime"].values
    if rule == "smooth" and verdict.unsure is not None:
        fine = np.linspace(0, 1, LINES)
        heat = np.linspace(0, 1, len(labels))
        places = np.stack(np.meshgrid(heat, fine, indexing="ij"), -1).reshape(-1, 2)
        density = measured.axes[-1].value(places[:, 1])
        poorly = regimes_at(measured, verdict.unsure, places, density)[:, 0].reshape(len(heat), LINES) >= 0.5
        own = poorly.sum(1) / LINES
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
    head = ["behind a cell", "noise", *(f"{what}, {rule}" for what in ("right", "border", "Brier") for rule in RULES)]
    rows, facts = [head], []
    for (seeds, pairs), noise in itertools.product(BEHIND, NOISES):
        chosen = [each for each in cases if (each.seeds, each.pairs, each.noise) == (seeds, pairs, noise)]
        row = {"seeds": seeds, "pairs": pairs, "noise": noise}
        for what, rule in itertools.product(("right", "border", "brier"), RULES):
            row[f"{what}_{rule}"] = float(np.mean([getattr(each, what) for each in chosen if each.rule == rule]))
        shown = [f"{row[f'right_{rule}']:.1%}" for rule in RULES]
        shown += [f"{row[f'{what}_{rule}']:.2f}" for what in ("border", "brier") for rule in RULES]
        rows.append([f"{_count(seeds, 'dense seed')}, {_count(pairs, 'pair')}", noise, *shown])
        facts.append(row)
    told = (f"{name} {each.lmc:g}, {each.barrier:g}, {each.cka:g}" for name, each in NOISES.items())
    notes = [
        f"noise: constant part of LMC, share of the barrier, share of the distance of CKA from 1: {'; '.join(told)}",
        "'digits' is that of the sweeps in reports/advice, whose CKA scatters most where there are barriers",
    ]
    return TextTable("By noise, over all shapes", rows, notes, facts)


def _by_shape(cases: Sequence[_Case]) -> TextTable:
    rows, facts = [["shape", *(f"{_count(seeds, 'seed')}, {_count(pairs, 'pair')}" for seeds, pairs in BEHIND)]], []
    for shape in SHAPES:
        shares = []
        for seeds, pairs in BEHIND:
            kind = ("smooth", seeds, pairs, shape)
            found = [each.right for each in cases if (each.rule, each.seeds, each.pairs, each.shape) == kind]
            shares.append(float(np.mean(found)))
        rows.append([shape, *(f"{each:.1%}" for each in shares)])
        facts.append({"shape": shape, "right": shares})
    return TextTable("Right cells by shape, rule 'smooth', over all noises", rows, [], facts)


def _by_probability(cases: Sequence[_Case]) -> TextTable:
    ranges = [f"{low:.0%} to {high:.0%}" for low, high in itertools.pairwise(BINS)]
    rows, facts = [["rule", "behind a cell", *ranges]], []
    for rule, (seeds, pairs) in itertools.product(RULES, BEHIND):
        bins = _reliability([each for each in cases if (each.rule, each.seeds, each.pairs) == (rule, seeds, pairs)])
        shown = ["-" if not each[2] else f"{each[0]:.2f}, {each[1]:.2f} ({each[2]:.0%})" for each in bins]
        rows.append([rule, f"{_count(seeds, 'dense seed')}, {_count(pairs, 'pair')}", *shown])
        facts.append({"rule": rule, "seeds": seeds, "pairs": pairs, "bins": bins})
    notes = ["said, was (share of all cells in this range); over all shapes and noises"]
    return TextTable("Calibration of the probabilities", rows, notes, facts)


def _reliability(cases: Sequence[_Case]) -> list[tuple[float, float, float]]:
    """(mean probability, share that was so, share of all cells) in each range."""
    said, was = np.concatenate([each.said for each in cases]), np.concatenate([each.was for each in cases])
    found = []
    for low, high in itertools.pairwise(BINS):
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
    """What was said against what was so, rule 'smooth', by what stands behind a cell."""
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.33, 1], [0.33, 1], color="#999999", lw=1, zorder=1)
    styles = zip(BEHIND, ("o", "s", "^", "D"), ("#111111", "#a23b14", "#4a8fb5", "#c9962b"), strict=False)
    for (seeds, pairs), marker, colour in styles:
        chosen = [each for each in cases if (each.rule, each.seeds, each.pairs) == ("smooth", seeds, pairs)]
        bins = np.array([each for each in _reliability(chosen) if each[2] > 0.002])
        label = f"{_count(seeds, 'dense seed')}, {_count(pairs, 'pair')}"
        axes.plot(bins[:, 0], bins[:, 1], marker=marker, color=colour, lw=1.3, ms=6, label=label)
    axes.set(
        xlabel="probability that was said", ylabel="share of cells where it was so", xlim=(0.33, 1.02), ylim=(0.2, 1.02)
    )
    axes.legend(frameon=False, title="behind each cell", loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
