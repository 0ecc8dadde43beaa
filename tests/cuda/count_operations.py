"""Operations, bytes and host syncs of a training step on a pretended GPU, by engine, as a Markdown table:
``python tests/helpers/pretended_gpu.py python tests/cuda/count_operations.py``."""

from __future__ import annotations

import pretended_cuda as pretended
import torch

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset, Split
from regimes.data.uint8_images import Uint8Images
from regimes.models.build import build
from regimes.registry import lookup
from regimes.training import ENGINES
from regimes.training.fleet import Lane

GPU = torch.device("cuda", 0)
BATCH, STEPS, LANES = 16, 4, 8


def images() -> Dataset:
    """A few passes' worth of random byte images of 32x32."""
    count = BATCH * STEPS * 3
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    scale = torch.full((3,), 0.5), torch.full((3,), 0.25)
    split = Split(Uint8Images(pixels, torch.arange(count), *scale), torch.randint(0, 10, (count,)))
    return Dataset(split, split, split, 10, "bytes").to(GPU, torch.float32, torch.channels_last)


def count(engine: str, precision: str, lanes: int) -> tuple[float, float, dict[str, float]]:
    """Launches, megabytes and host syncs of a step and network, in an epoch that is not the first."""
    # An epoch is some steps within one pass over the images.
    recipe = Recipe(epochs=3, batch_size=BATCH, epoch_batch=3 * BATCH, augment="crop-flip")
    models = [build("preresnet", {"depth": 20, "width": 16}, (3, 32, 32), 10, seed).to(GPU) for seed in range(lanes)]
    lanes_of = [Lane(model, recipe, ("x", seed)) for seed, model in enumerate(models)]
    trained = lookup(ENGINES, engine, "engine")(lanes_of, images(), precision)
    trained.epoch(0)
    with pretended.Operations() as seen:
        trained.epoch(1)
    launches, moved = sum(seen.launches.values()), seen.bytes
    for member in getattr(trained, "members", []):  # replayed operations are recorded, not dispatched
        launches += STEPS * len(member.graph.recorded)
        moved += STEPS * sum(
            pretended.bytes_of(args, kwargs, results) for _, args, kwargs, results in member.graph.recorded
        )
    share = 1 / (STEPS * lanes)
    return launches * share, moved * share / 1e6, {line: number * share for line, number in seen.syncs.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| engine | operations | MB | host syncs |\n|---|---|---|---|")
    for engine, precision, lanes in (
        ("eager", "float32", 1),
        ("eager", "bfloat16", 1),
        ("stacked", "float32", LANES),
        ("graphed", "float32", LANES),
        ("graphed", "bfloat16", LANES),
    ):
        launches, megabytes, syncs = count(engine, precision, lanes)
        said = ", ".join(f"{line} {number:.2g}" for line, number in sorted(syncs.items()))
        print(f"| {engine}, {precision}, {lanes} | {launches:.0f} | {megabytes:.0f} | {said or 'none'} |", flush=True)
