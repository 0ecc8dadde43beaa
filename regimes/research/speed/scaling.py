"""Benchmark ``growth``: time and memory as functions of cells, model, data, density and workers, with fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from regimes.plots.text_table import TextTable
from regimes.research.page import Page, Say, benchmark_page
from regimes.research.speed.harness import BenchOptions, Contender, run_contenders

MODULE = "regimes.research.speed.scaling_points"
IMAGENET = 1_281_167  # training images


def bench(options: BenchOptions, say: Say) -> Page:
    """Run the measurements."""
    case = {"device": options.device}
    one: dict[str, list[dict[str, Any]]] = {
        "cells": [{"cells": count} for count in (100, 1_000, 10_000)],
        "model": [{"width": width} for width in (4, 8, 16, 32, 64)],
        "data": [{"count": count} for count in (1_024, 4_096, 16_384)],
        "density": [{"density": density} for density in (0.02, 0.1, 0.5, 1.0)],
        "channels": [{"density": density} for density in (0.02, 0.1, 0.5, 1.0)],
        "workers": [{"workers": count} for count in (1, 2)],
    }
    tables = []
    for name, points in one.items():
        found = []
        for point in points:
            (timing,) = run_contenders(
                [Contender(f"{name} {point}", f"{MODULE}:{name}", lean=True, options=point)], case, options.rounds, say
            )
            found.append({**point, "seconds": 1 / timing.rate, **timing.checks[-1]})
        tables.append(_table(name, found))
    (limit,) = run_contenders([Contender("ResNet-50", f"{MODULE}:imagenet")], case, 1, say)
    by_name = {table.facts["name"]: table.facts for table in tables}
    return benchmark_page("growth", [*tables, _estimates(by_name, limit.checks[0])])


TITLES = {
    "cells": ("Cells: expanding, scanning and assembling a sweep of 3 copies and 5 metrics", "cells"),
    "model": ("Model: a training step of PreResNet-14, 64 images of 8x8", "width"),
    "data": ("Data: an epoch of PreResNet-14 width 8, batch size 64", "count"),
    "density": ("Density: a training step under a mask", "density"),
    "channels": ("Density: a training step of PreResNet-14 width 32 without pruned channels", "density"),
    "workers": ("Workers: a sweep of 24 retrained copies of PreResNet-14 width 8", "workers"),
}


def _table(name: str, found: Sequence[dict[str, Any]]) -> TextTable:
    title, axis = TITLES[name]
    more = [key for key in found[0] if key not in (axis, "seconds")]
    rows = [[axis, "seconds", *more]]
    rows += [[f"{each[axis]:g}", f"{each['seconds']:.4g}", *(f"{each[key]:.4g}" for key in more)] for each in found]
    slope = _slope([each[axis] for each in found], [each["seconds"] for each in found])
    notes = [f"seconds grow as {axis}^{slope:.2f}"]
    return TextTable(title, rows, notes, {"name": name, "points": list(found), "slope": slope})


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of a power law, by least squares in logarithms."""
    u, v = [math.log(each) for each in x], [math.log(each) for each in y]
    a, b = sum(u) / len(u), sum(v) / len(v)
    return sum((p - a) * (q - b) for p, q in zip(u, v, strict=True)) / sum((p - a) ** 2 for p in u)


def _estimates(facts: dict[str, Any], limit: dict[str, float]) -> TextTable:
    """Extrapolations to sizes that are not measured."""
    cells = facts["cells"]["points"]
    # From the two largest grids: start-up dominates the smallest.
    slope = _slope([each["cells"] for each in cells[-2:]], [each["seconds"] for each in cells[-2:]])
    grown = cells[-1]["seconds"] * (1e5 / cells[-1]["cells"]) ** slope
    memory = cells[-1]["memory_MB"] * 10
    days = limit["step_seconds"] / limit["batch"] * IMAGENET * 90 / 86_400
    rows = [
        ["", "estimate", "based on"],
        ["10^5 cells: planning and assembling", f"{grown / 60:.1f} min", f"seconds ~ cells^{slope:.2f}"],
        ["10^5 cells: memory of the command", f"{memory / 1e3:.1f} GB", "growth to 10^4 cells, times ten"],
        ["10^5 cells: records", f"{cells[-1]['record_MB'] * 10 / 1e3:.1f} GB", "bytes at 10^4 cells, times ten"],
        [
            "ResNet-50, ImageNet, 90 epochs, one core",
            f"{days:,.0f} days",
            f"a measured step of {limit['batch']:.0f} images",
        ],
        [
            "ResNet-50: memory of a step of 256 images",
            f"{limit['bytes_per_network'] / 1e9:.0f} GB",
            "tensors kept by autograd, doubled",
        ],
    ]
    notes = ["ImageNet does not fit into memory: its images would have to be streamed, which is not supported yet"]
    return TextTable("Estimates, not measurements", rows, notes, {"name": "estimates", **limit})
