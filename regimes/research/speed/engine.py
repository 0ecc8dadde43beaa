"""Benchmark ``engine``: whole sweeps of small networks and training of PreResNet-20, with several implementations."""

from __future__ import annotations

from typing import Any

from regimes.research.page import Page, Say, benchmark_page
from regimes.research.speed.harness import BenchOptions, Contender, run_contenders
from regimes.research.speed.rate_table import CORES_NOTE, RateTable
from regimes.research.speed.regimes_arm import workers_of

MODULE = "regimes.research.speed"
NOTES = [
    CORES_NOTE,
    "the package's workers keep freed memory (a glibc setting); the reference starts four loader processes per pass",
]
FIRST = ("regimes, 8 graphed, bfloat16", "reference pipeline, one thread")  # run first: on a GPU, time may be short
SWEEP = {
    "model": "preresnet14-w8",
    "epochs": 20,
    "batch": 64,
    "augment": False,
    "densities": [0.05, 0.4],
    "copies": 3,
    "pairs": [[0, 1], [0, 2], [1, 2]],
    "dense_seeds": 12,
    "hessian_images": 128,
    "probes": 16,
    "power_steps": 100,
}


def bench(options: BenchOptions, say: Say) -> Page:
    """Run the comparison."""
    tables = []
    if options.device == "cpu":
        say("digits sweep: train, prune, retrain three copies, measure (error, LMC, CKA, Hessian trace and top)")
        contenders = [
            Contender("regimes run", f"{MODULE}.regimes_arm:sweep", lean=True),
            Contender("plain PyTorch, one thread", f"{MODULE}.pytorch_arm:sweep"),
            Contender("reference pipeline, one thread", f"{MODULE}.reference_pipeline:sweep"),
            Contender("reference pipeline, torch's threads", f"{MODULE}.reference_pipeline:sweep", threads=0),
        ]
        timings = run_contenders(contenders, SWEEP, options.rounds, say)
        tables.append(
            RateTable("Digits sweep, cells", "cells/hour", 3600.0, timings, ["test_error", "lmc"], NOTES).table()
        )
    tables.append(_training(options, say).table())
    return benchmark_page("engine", tables)


def _training(options: BenchOptions, say: Say) -> RateTable:
    small, workers = options.device == "cpu", workers_of(options.device)
    count = options.count or (5120 if small else 50_000)
    case: dict[str, Any] = {
        "model": "preresnet20",
        "epochs": 3 if small else 2,
        "batch": min(128, count),
        "augment": True,
        "count": count,
        "images": options.images,
        "device": options.device,
        "workers": workers,
    }
    say(f"PreResNet-20: {case['epochs']} epochs on {case['count']} images of 32x32, batch {case['batch']}")
    ours = f"{MODULE}.regimes_arm:training"
    graphed = [
        (f"regimes, {lanes} graphed, {precision}", {"engine": "graphed", "lanes": lanes, "precision": precision})
        for lanes, precision in ((8, "float32"), (8, "bfloat16"), (16, "bfloat16"))
    ]
    contenders = [
        *([] if small else [Contender(name, ours, lean=True, options=each) for name, each in graphed]),
        Contender("regimes, float32", ours, lean=True),
        Contender("regimes, bfloat16", ours, lean=True, options={"precision": "bfloat16"}),
        Contender("plain PyTorch, one thread", f"{MODULE}.pytorch_arm:training"),
        Contender("reference pipeline, one thread", f"{MODULE}.reference_pipeline:training"),
        Contender("reference pipeline, torch's threads", f"{MODULE}.reference_pipeline:training", threads=0),
    ]
    timings = run_contenders(sorted(contenders, key=lambda each: each.name not in FIRST), case, options.rounds, say)
    timings.sort(key=lambda timing: contenders.index(timing.contender))
    (limit,) = run_contenders([Contender("limit", f"{MODULE}.roofline:measure")], case, 1, say)
    title, plain = "PreResNet-20 on 32x32, training", 2 if small else 5
    table = RateTable(title, "model-epochs/hour", 3600.0, timings, ["test_error"], NOTES, ours=plain)
    return table.with_limit(limit.checks[0], cores=workers if small else 1)
