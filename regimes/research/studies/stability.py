"""Study ``stability``: spread of every measure over images and probes, over copies, and over the last epochs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from regimes.config.recipe import Recipe
from regimes.data import DATASETS
from regimes.data.dataset import Dataset, Split
from regimes.experiment.context import in_layout, one_thread
from regimes.landscape.agreement import disagreement, js_divergence
from regimes.landscape.cka import cka
from regimes.landscape.error import error_and_loss
from regimes.landscape.estimate import Estimate
from regimes.landscape.fisher_and_ggn import fisher_trace, gauss_newton_trace
from regimes.landscape.hessian import hessian_top, hessian_trace
from regimes.landscape.linear_path import linear_connectivity
from regimes.landscape.sharpness import sharpness
from regimes.models.build import build
from regimes.plots.text_table import TextTable
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prune
from regimes.registry import lookup
from regimes.research.page import Page, Say
from regimes.training.fleet import Lane
from regimes.training.train import Snapshot, train_fleet

DENSITY = 0.05
COPIES = 4
LAST_EPOCHS = 5  # of a copy's training that are measured
SUBSET_SIZES = (32, 64, 128, 256, 512)
REPEATS = 8  # random subsets of images per size
RECIPE = Recipe(epochs=20, batch_size=64)
MODEL = ("preresnet", {"depth": 14, "width": 8})

Networks = tuple[nn.Module, ...]
Estimator = Callable[[Networks, Split, Mask, int], Estimate]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _curved(function: Callable[..., Estimate], **options: Any) -> Estimator:
    return lambda nets, split, mask, seed: function(
        nets[0], F.cross_entropy, tuple(split), mask, generator=_seeded(seed), **options
    )


SINGLE_MEASURES: dict[str, Estimator] = {
    "training error": lambda nets, split, mask, seed: error_and_loss(nets[0], split, F.cross_entropy)[0],
    "Hessian trace": _curved(hessian_trace, rel_stderr=0.05),
    "top eigenvalue": _curved(hessian_top, tolerance=0.01),
    "Gauss-Newton trace": _curved(gauss_newton_trace, rel_stderr=0.05),
    "empirical Fisher trace": lambda nets, split, mask, seed: fisher_trace(
        nets[0], F.cross_entropy, tuple(split), mask
    ),
    "sharpness": lambda nets, split, mask, seed: sharpness(nets[0], F.cross_entropy, tuple(split), mask),
}
PAIR_MEASURES: dict[str, Estimator] = {
    "LMC": lambda nets, split, mask, seed: linear_connectivity(nets[0], nets[1], tuple(split)),
    "CKA, softmax": lambda nets, split, mask, seed: cka(nets[0], nets[1], split.inputs),
    "CKA, softmax, debiased": lambda nets, split, mask, seed: cka(nets[0], nets[1], split.inputs, debiased=True),
    "CKA, logits": lambda nets, split, mask, seed: cka(nets[0], nets[1], split.inputs, on="logits"),
    "disagreement": lambda nets, split, mask, seed: disagreement(nets[0], nets[1], split.inputs),
    "Jensen-Shannon divergence": lambda nets, split, mask, seed: js_divergence(nets[0], nets[1], split.inputs),
}


def study(out: Path, runs: Path, say: Say) -> Page:
    """Train copies of one pruned network on digits and repeat every measure on them."""
    with one_thread():
        data: Dataset = lookup(DATASETS, "digits", "data set")()
        data = data.to(torch.device("cpu"), torch.float32, torch.channels_last)
        mask, copies = _train(data)
        say(f"{COPIES} copies trained, density {DENSITY:g}")
        sizes = (*SUBSET_SIZES, len(data.train.targets))
        rows, facts = [], []
        for name, measured in {**SINGLE_MEASURES, **PAIR_MEASURES}.items():
            found = _evaluate(name, measured, mask, copies, data, sizes)
            facts.append(found)
            rows.append(_row(found))
            say(f"{name}: {found['seconds']:.2f} s on all images")
    head = ["measure", *(f"n = {size}" for size in sizes[:-1]), f"all {sizes[-1]}", "copies", "last epochs", "seconds"]
    table = TextTable("Value on all images, and spread", [head, *rows], NOTES, facts)
    return Page("stability", TITLE, PARAGRAPHS, [table], {"spread": _figure(facts, sizes)}, {"sizes": sizes})


TITLE = "Stability of the measures"
PARAGRAPHS = [
    f"{COPIES} copies of PreResNet-14 (width 8) on handwritten digits, pruned to {100 * DENSITY:g} % and retrained for "
    "20 epochs from one dense network. Each measure is evaluated on the training images: on random subsets of n images "
    f"with fresh random probes ({REPEATS} times each); on each copy or pair of copies; and after each of the last "
    f"{LAST_EPOCHS} epochs.",
    "Numbers are standard deviations in the unit of the measure; in brackets the offset of the mean from the value on "
    "all images, where it exceeds two standard errors: such a measure is biased at small n.",
]
NOTES = [
    "n = ...: one copy or pair, over random subsets and probes; all: value ± its own standard error",
    "large subsets of the same images overlap, so the spread at n = 512 is too optimistic",
    "copies: standard deviation over copies (or pairs) on all images; last epochs: within one copy or pair",
    "seconds: one evaluation on all images with one thread",
]


def _train(data: Dataset) -> tuple[Mask, list[list[Networks]]]:
    """The mask, and each copy after each of the last epochs."""
    dense = _fresh()
    ((_, end),) = train_fleet([Lane(dense, RECIPE, ("dense", 0))], data, [RECIPE.epochs], "eager", evaluate_all=False)
    dense.load_state_dict(end.weights)
    mask = prune(dense, DENSITY)
    epochs = list(range(RECIPE.epochs - LAST_EPOCHS + 1, RECIPE.epochs + 1))
    copies: list[list[Networks]] = []
    for seed in range(COPIES):
        model = _fresh()
        model.load_state_dict(end.weights)
        mask.apply(model)
        lane = Lane(model, RECIPE, ("retrain", seed), mask)
        found: list[Snapshot] = [each for _, each in train_fleet([lane], data, epochs, "eager", evaluate_all=False)]
        copies.append([(_load(each),) for each in found])
    return mask, copies


def _fresh() -> nn.Module:
    return in_layout(build(MODEL[0], MODEL[1], (1, 8, 8), 10, 0), torch.channels_last)


def _load(snapshot: Snapshot) -> nn.Module:
    model = _fresh()
    model.load_state_dict(snapshot.weights)
    return model.eval()


def _evaluate(
    name: str, measured: Estimator, mask: Mask, copies: list[list[Networks]], data: Dataset, sizes: Sequence[int]
) -> dict[str, Any]:
    """Evaluate one measure over subset sizes and probes, over copies, and over the last epochs."""
    last = [each[-1] for each in copies]
    subjects: list[Networks] = (
        [(a[0], b[0]) for a, b in itertools.combinations(last, 2)] if name in PAIR_MEASURES else last
    )
    over = [
        (one[0], other[0]) if name in PAIR_MEASURES else one for one, other in zip(copies[0], copies[1], strict=True)
    ]
    started = time.perf_counter()
    whole = measured(subjects[0], data.train, mask, 0)
    seconds = time.perf_counter() - started
    by_size = []
    for size in sizes[:-1]:
        values = [
            measured(subjects[0], _random_subset(data.train, size, seed), mask, seed).value for seed in range(REPEATS)
        ]
        by_size.append({"size": size, "mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1))})
    among = [measured(each, data.train, mask, 0).value for each in subjects]
    late = [measured(each, data.train, mask, 0).value for each in over]
    return {
        "measure": name,
        "value": whole.value,
        "stderr": whole.stderr,
        "by_size": by_size,
        "copies": float(np.std(among, ddof=1)),
        "epochs": float(np.std(late, ddof=1)),
        "seconds": seconds,
    }


def _random_subset(split: Split, size: int, seed: int) -> Split:
    order = torch.randperm(len(split.targets), generator=_seeded(1000 + seed))[:size]
    return Split(split.inputs[order], split.targets[order])


def _row(found: dict[str, Any]) -> list[str]:
    cells = []
    for each in found["by_size"]:
        offset = each["mean"] - found["value"]
        biased = abs(offset) > 2 * each["spread"] / REPEATS**0.5
        cells.append(f"{each['spread']:.2g}" + (f" ({offset:+.2g})" if biased else ""))
    whole = f"{found['value']:.3g} ± {found['stderr']:.1g}"
    return [
        found["measure"],
        *cells,
        whole,
        f"{found['copies']:.2g}",
        f"{found['epochs']:.2g}",
        f"{found['seconds']:.2f}",
    ]


def _figure(facts: Sequence[dict[str, Any]], sizes: Sequence[int]) -> Figure:
    """Draw the spread over random images in units of the spread over copies, by number of images."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    colours, marks = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"), "osD^vP"
    for number, each in enumerate(facts):
        spread = [point["spread"] / each["copies"] if each["copies"] else float("nan") for point in each["by_size"]]
        style = "-" if each["measure"] in SINGLE_MEASURES else "--"
        label = each["measure"] + ("" if each["measure"] in SINGLE_MEASURES else " (pair)")
        axes.plot(sizes[:-1], spread, style, marker=marks[number % 6], ms=4.5, color=colours[number % 6], label=label)
    axes.axhline(1.0, color="#222222", lw=1)
    axes.set(xscale="log", yscale="log", xlabel="images that the measure is evaluated on")
    axes.set_xticks(sizes[:-1], [str(size) for size in sizes[:-1]])
    axes.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    axes.minorticks_off()
    axes.set_ylabel("standard deviation over random images,\nin units of that between retrained copies")
    axes.set_title("Below 1: copies differ more than repeated measurements", fontsize=10)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
