"""Benchmark ``pair``: linear mode connectivity and CKA of a pair of networks, with several implementations."""

from __future__ import annotations

import tempfile
from typing import Any

from regimes.research.page import Page, Say, benchmark_page
from regimes.research.speed.engine import NOTES
from regimes.research.speed.harness import BenchOptions, Contender, run_contenders
from regimes.research.speed.rate_table import RateTable
from regimes.research.speed.regimes_arm import workers_of
from regimes.research.speed.workloads import by_worth

MODULE = "regimes.research.speed"
CASES: dict[str, dict[str, Any]] = {
    "digits, PreResNet-14 width 8, 1151 images": {"model": "preresnet14-w8", "epochs": 10, "batch": 64},
    "32x32, PreResNet-20, {count} images": {"model": "preresnet20", "epochs": 2, "batch": 128},
}


def bench(options: BenchOptions, say: Say) -> Page:
    """Run the comparison."""
    tables = []
    for title, base in by_worth(CASES, options.device):
        usual = 2560 if options.device == "cpu" else 0
        count = options.count or usual if base["model"] == "preresnet20" else 0
        title = title.format(count=count or "all")
        with tempfile.TemporaryDirectory() as folder:
            case = {**base, "folder": folder, "images": options.images, "device": options.device}
            case["workers"] = workers_of(options.device)
            case |= {"augment": False, "count": count, "seeds": [0, 1]}
            say(f"{title}: training two copies")
            run_contenders([Contender("networks", f"{MODULE}.workloads:train_and_save", threads=0)], case, 1, say)
            ours = f"{MODULE}.regimes_arm:pair"
            contenders = [
                Contender("regimes", ours, lean=True),
                Contender(
                    "regimes, statistics by batch",
                    f"{MODULE}.regimes_arm:pair",
                    lean=True,
                    options={"statistics": "batch"},
                ),
                Contender("plain PyTorch, one thread", f"{MODULE}.pytorch_arm:pair"),
                Contender("reference pipeline, one thread", f"{MODULE}.reference_pipeline:pair"),
                Contender("reference pipeline, torch's threads", f"{MODULE}.reference_pipeline:pair", threads=0),
            ]
            timings = run_contenders(contenders, case, options.rounds, say)
        tables.append(
            RateTable(
                f"LMC and CKA of a pair: {title}", "pairs/hour", 3600.0, timings, ["lmc", "cka"], NOTES, ours=2
            ).table()
        )
    return benchmark_page("pair", tables)
