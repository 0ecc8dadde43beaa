"""Benchmark ``steps``: time of a training step of PreResNet-20 per network, by engine, precision and lanes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset, Split
from regimes.data.uint8_images import Uint8Images
from regimes.device_faults import fault_of
from regimes.experiment.context import in_layout
from regimes.experiment.engine_selection import engine_of
from regimes.experiment.memory import synchronize
from regimes.experiment.numerics import use_deterministic_kernels
from regimes.plots.text_table import TextTable
from regimes.research.page import Page, Say, benchmark_page
from regimes.research.speed.harness import BenchOptions
from regimes.research.speed.roofline import SMALL_COUNT, bandwidth, matrix_rate, step
from regimes.research.speed.workloads import new_network
from regimes.training.fleet import Lane

BATCH = 128
STEPS = 24  # of a timed epoch
CASE = {"model": "preresnet20"}


@dataclass(frozen=True)
class Way:
    """A way of training: engine, precision, number of networks at once, and whether the network is compiled."""

    engine: str
    precision: str
    lanes: int
    compiled: bool = False

    def __str__(self) -> str:
        networks = f"{self.lanes} network{'s' * (self.lanes != 1)}"
        return f"{self.engine}, {self.precision}, {networks}{', compiled' * self.compiled}"


WAYS = {
    "cuda": (
        *(Way("eager", precision, 1) for precision in ("float32", "bfloat16")),
        *(Way("graphed", "bfloat16", lanes) for lanes in (1, 4, 8, 16)),
        *(Way("graphed", "float32", lanes) for lanes in (1, 8)),
        Way("stacked", "float32", 8),
        *(Way("graphed", "bfloat16", lanes, compiled=True) for lanes in (8, 16)),
    ),
    "cpu": (Way("eager", "float32", 1), Way("eager", "bfloat16", 1), Way("stacked", "float32", 8)),
}


def bench(options: BenchOptions, say: Say) -> Page:
    """Run the comparison on random byte images with crop and flip."""
    where = torch.device(options.device)
    use_deterministic_kernels(options.device)
    torch.set_num_threads(1)
    count = options.count or STEPS * BATCH
    batch, data = min(BATCH, count), _data(where, count)
    floors = {precision: _floor(where, batch, precision, count < SMALL_COUNT) for precision in ("float32", "bfloat16")}
    rows = [["", "ms per network and step", "least-greatest", "share of the limit"]]
    facts, failed = [], False
    for way in WAYS[where.type]:
        try:
            found = [1e3 * seconds for seconds in _seconds(way, data, batch, options.rounds)]
        except Exception as error:  # what fails on a device is a result
            rows.append([str(way), f"{type(error).__name__}: {' '.join(str(error).split())[:120]}", "", ""])
            say(rows[-1][1])
            if fault_of(error):  # the others would fail, too
                failed = True
                break
            continue
        middle, limit = statistics.median(found), 1e3 * max(floors[way.precision].values())
        rows.append([str(way), f"{middle:.3g}", f"{min(found):.3g}-{max(found):.3g}", f"{limit / middle:.0%}"])
        facts.append({**vars(way), "ms": found, "limit_ms": limit})
        say(f"{way}: {middle:.3g} ms")
    notes = [
        f"{precision}: the operations' bytes take {1e3 * floor['bytes']:.2f} ms at the measured copy bandwidth, their "
        f"multiplications {1e3 * floor['flops']:.2f} ms at the measured matrix rate; the limit is the larger one"
        for precision, floor in floors.items()
    ]
    title = f"PreResNet-20 on 32x32, batch size {batch}: gather, augmentation, forward, backward, SGD"
    return dataclasses.replace(benchmark_page("steps", [TextTable(title, rows, notes, facts)]), failed=failed)


def _data(device: torch.device, count: int) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    scale = torch.full((3,), 0.5), torch.full((3,), 0.25)
    split = Split(Uint8Images(pixels, torch.arange(count), *scale), torch.randint(0, 10, (count,), generator=draw))
    return Dataset(split, split, split, 10, "random bytes").to(device, torch.float32, torch.channels_last)


def _seconds(way: Way, data: Dataset, batch: int, rounds: int) -> list[float]:
    """Seconds per network and step of some epochs, after one for warm-up and capture."""
    device = data.train.targets.device
    recipe = Recipe(epochs=1 + rounds, batch_size=batch, augment="crop-flip")
    lanes = []
    for seed in range(way.lanes):
        model = in_layout(new_network({**CASE, "device": str(device)}, seed), torch.channels_last)
        if way.compiled:
            model.compile()
        lanes.append(Lane(model, recipe, ("steps", seed)))
    engine, found = engine_of(way.engine)(lanes, data, way.precision), []
    for number in range(1 + rounds):
        synchronize(device)
        started = time.perf_counter()
        engine.epoch(number)
        synchronize(device)
        found.append((time.perf_counter() - started) / (way.lanes * (len(data.train.targets) // batch)))
    return found[1:]


def _floor(device: torch.device, batch: int, precision: str, few: bool) -> dict[str, float]:
    """Seconds of a step's bytes at the copy bandwidth, and of its multiplications at the matrix rate."""
    inputs: Tensor = torch.randn(batch, 3, 32, 32, device=device)
    flops, moved = step(new_network({**CASE, "device": str(device)}, 0), inputs, precision)
    small = few or device.type == "cpu"
    return {"bytes": moved / bandwidth(device, small), "flops": flops / matrix_rate(device, precision, small)}
