"""Study ``discovery``: gate estimators, a toy problem with known answer, hyperparameters, and baselines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from regimes.config.discovery import Pressure
from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.data.digits import digits
from regimes.discovery.complexity import size_of
from regimes.discovery.count_macs import count_macs
from regimes.discovery.gated_training import GatedTraining
from regimes.discovery.trace_graph import trace_graph
from regimes.experiment.context import one_thread
from regimes.models.build import build
from regimes.plots.discovery_plots import front, structure_over_time
from regimes.plots.text_table import TextTable
from regimes.research.page import Page, Say
from regimes.research.studies.discovery_baselines import CIFAR, DIGITS, NETWORKS, load_or_train
from regimes.research.studies.gate_estimator_bias import estimator_table
from regimes.research.studies.teacher_student import train_student, units_left

TITLE = "Structure discovery: removing units and layers during training"
PARAGRAPHS = [
    "Every unit and residual block has a Bernoulli gate, trained with the weights with a penalty for its cost; "
    "units and blocks not worth their cost are removed permanently during training. The formulas are our own "
    "derivation of complexity-aware training (arXiv 2406.04549); they and the estimators are documented in "
    "`regimes/discovery/`.",
    "Baselines, each with the same seed, initial weights and order of images as the discovered network: "
    + "; ".join(f"*{name}*: {what}" for name, what in NETWORKS.items() if name != "discovered")
    + ". Training time includes everything that a network requires: for *magnitude* also the dense training, for "
    "*discovered* tracing, gates, removal and the validation after every epoch. *scratch* and *narrowed* are given a "
    "structure; the time to find it is not included. The width of *narrowed* is found by timing it and the discovered "
    "network in turn, taking the minimum of three. The networks were trained and timed in turn, seed by seed, in one "
    "process on one core.",
]
SEEDS = 5
TOY_PRESSURES: dict[str, dict[str, Any]] = {
    "nu 0": {"nu": 0.0},
    "nu 0.1, alpha 0.65": {"nu": 0.1, "alpha": 0.65},
    "nu 0.3, alpha 0.65": {"nu": 0.3, "alpha": 0.65},
    "nu 0.3, alpha 0.5": {"nu": 0.3, "alpha": 0.5},
    "nu 0.3, alpha 0.8": {"nu": 0.3, "alpha": 0.8},
    "nu 0.2, alpha 1": {"nu": 0.2, "alpha": 1.0},
    "nu 0.2, alpha 0": {"nu": 0.2, "alpha": 0.0},
    "nu 10, alpha 0.65": {"nu": 10.0, "alpha": 0.65},
}
KAPPAS = (0.0, 0.5, 1.0)


def study(out: Path, runs: Path, say: Say) -> Page:
    """Run the study; comparisons with baselines are read from ``out`` where they are saved there."""
    results = {each.name: load_or_train(each, out, say) for each in (DIGITS, CIFAR)}
    with one_thread():
        tables = [*(_baselines(name, each) for name, each in results.items())]
        for make in (_toys, estimator_table, _balance, _sizes):
            tables.append(make())
            say(tables[-1].title)
    figures: dict[str, Figure] = {}
    for name, each in results.items():
        figures[f"front-{name}"] = front(_series(each["records"]))
        first = next(row for row in each["records"] if row["arm"] == "discovered")
        figures[f"structure-{name}"] = structure_over_time(first)
    return Page("discovery", TITLE, PARAGRAPHS, tables, figures)


def _series(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    return {network: [each for each in records if each["arm"] == network] for network in NETWORKS}


def _baselines(name: str, results: Mapping[str, Any]) -> TextTable:
    """Means and spreads over seeds; times as ratios to the dense network of the same seed."""
    records = results["records"]
    dense = {each["seed"]: each for each in records if each["arm"] == "dense"}
    rows = [
        ["nu", "network", "test error", "above dense", "MACs", "parameters", "training time", "step", "1000 inputs"]
    ]
    groups: dict[tuple[Any, str], list[Mapping[str, Any]]] = {}
    for each in records:
        groups.setdefault((each["nu"], each["arm"]), []).append(each)
    for (nu, network), found in sorted(
        groups.items(), key=lambda item: (item[0][0] or 0, list(NETWORKS).index(item[0][1]))
    ):
        more = [100 * (each["test_error"] - dense[each["seed"]]["test_error"]) for each in found]
        ratios = [
            _ratio([each[key] / dense[each["seed"]][key] for each in found])
            for key in ("train_seconds", "step_seconds", "inference_seconds")
        ]
        rows.append(
            [
                "-" if nu is None else f"{nu:g}",
                network,
                _spread([100 * each["test_error"] for each in found], "%"),
                "-" if network == "dense" else _spread(more, "points", "+"),
                f"{_mean([each['macs'] / each['full_macs'] for each in found]):.1%}",
                f"{_mean([each['params'] / each['full_params'] for each in found]):.1%}",
                *ratios,
            ]
        )
    own = next(iter(dense.values()))
    notes = [
        f"{len(dense)} seeds: mean and standard deviation; times: median (minimum to maximum) of the ratio to the "
        f"dense network of the same seed, which took {_mean([each['train_seconds'] for each in dense.values()]):.0f} s",
        f"the full network: {own['macs'] / 1e6:.2f} M MACs, {own['params']:,.0f} parameters; {results['where']}",
        *_faster(records),
        *{each["message"] for each in records if each.get("message")},
    ]
    about = {"digits": "digits, PreResNet-14 of width 8, 40 epochs", "cifar10": _cifar()}
    facts = [{key: value for key, value in each.items() if key not in ("history", "layers")} for each in records]
    return TextTable(f"Baselines: {about[name]}", rows, notes, facts)


def _faster(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Effect of removal on the seconds of an epoch, one line per pressure."""
    found: dict[float, list[float]] = {}
    for each in records:
        if each["arm"] == "discovered":
            rows = each["history"]
            found.setdefault(each["nu"], []).append(rows[-1]["seconds"] / rows[0]["seconds"])
    return [
        f"nu {nu:g}: the last epoch of a discovery takes {_ratio(each)} times as long as its first"
        for nu, each in found.items()
    ]


def _cifar() -> str:
    images, epochs = CIFAR.data.options["images"], CIFAR.recipe.epochs
    return f"CIFAR-10 (JPEG), {images} images of 50,000, ResNet-20, {epochs} epochs"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _spread(values: Sequence[float], unit: str, sign: str = "") -> str:
    return f"{_mean(values):{sign}.2f} ± {statistics.stdev(values):.2f} {unit}"


def _ratio(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _toys() -> TextTable:
    rows = [["pressure", "units remaining in the three blocks, by seed", "1 x 4", "test error"]]
    facts = []
    for name, pressure in TOY_PRESSURES.items():
        found = [train_student(seed, **pressure) for seed in range(SEEDS)]
        errors = [each.error(each.data.test) for each in found]
        exactly = sum(sorted(units_left(each)) == [0, 0, 4] for each in found)
        shown = ", ".join(" ".join(map(str, units_left(each))) for each in found)
        rows.append([name, shown, f"{exactly} of {SEEDS}", f"{statistics.median(errors):.4f}"])
        facts.append({**pressure, "left": [units_left(each) for each in found], "errors": errors})
    notes = [
        "teacher: one residual block of 4 units; student: three blocks of 16; 1 x 4: one block of four units remains",
        "test error: mean square, median over seeds; targets have variance 1. nu 10 would remove everything: discovery "
        "stops and keeps the last usable network",
    ]
    return TextTable("A toy problem with known answer", rows, notes, facts)


def _balance() -> TextTable:
    """Effect of kappa on digits, and test errors before and after the gates are rounded."""
    data = digits()
    rows = [["kappa", "MACs", "parameters", "last gated epoch", "one epoch after rounding", "final"]]
    facts = []
    for kappa in KAPPAS:
        found = []
        for seed in range(3):
            model = build("preresnet", {"depth": 14, "width": 8}, data.input_shape, data.classes, seed_of("init", seed))
            recipe = Recipe(epochs=40, batch_size=64, augment="none")
            search = GatedTraining(model, data, recipe, Pressure(nu=0.3, kappa=kappa), ("dense", seed))
            errors = []
            for number in range(recipe.epochs):
                search.epoch(number)
                if (
                    number + 2 in (search.schedule.settle_epoch, search.schedule.settle_epoch + 1)
                    or number + 1 == recipe.epochs
                ):
                    errors.append(search.error(data.test))
            size = size_of(search.graph)
            found.append([float(size.macs / search.full.macs), float(size.params / search.full.params), *errors])
        columns = list(zip(*found, strict=True))
        facts.append({"kappa": kappa, "seeds": found})
        shares = [f"{_mean(column):.1%}" for column in columns[:2]]
        rows.append([f"{kappa:g}", *shares, *(_spread([100 * e for e in each], "%") for each in columns[2:])])
    notes = ["digits, PreResNet-14 of width 8, nu 0.3, three seeds; test errors, mean and standard deviation"]
    return TextTable(
        "Kappa: MACs versus parameters; test error before and after rounding the gates", rows, notes, facts
    )


def _sizes() -> TextTable:
    rows = [["network", "parameters", "counted by torch", "MACs", "counted by torch"]]
    facts = []
    for name, depth in (("resnet", 20), ("resnet", 56), ("resnet", 110), ("preresnet", 20), ("vgg", 16)):
        model = build(name, {"depth": depth}, (3, 32, 32), 10, 0)
        inputs = torch.zeros(2, 3, 32, 32)
        size = size_of(trace_graph(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))))
        counted = [sum(each.numel() for each in model.parameters()), count_macs(model, inputs)]
        rows.append(
            [f"{name} {depth}", f"{int(size.params):,}", f"{counted[0]:,}", f"{int(size.macs):,}", f"{counted[1]:,}"]
        )
        facts.append({"name": name, "depth": depth, "size": [int(size.params), int(size.macs)], "counted": counted})
    return TextTable("Sizes by formula and as counted by torch", rows, ["32x32 colour images, ten classes"], facts)
