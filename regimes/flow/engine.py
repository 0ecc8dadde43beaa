"""Which engine trains: tried on the very model before the first run, kept with the run ever after."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from regimes.data.dataset import Dataset, Split
from regimes.flow.lab import Lab, Numerics, one_thread
from regimes.flow.stage import Stage
from regimes.registry import load
from regimes.spec.recipe import Recipe
from regimes.spec.sweep import Sweep
from regimes.training import ENGINES
from regimes.training.lane import Engine, Lane
from regimes.training.stacked import has_private_randomness

STEPS = 4  # of a trial
WORTH = 0.95  # another engine has to take less than this share of eager's time


def fastest(numerics: Numerics, sweep: Sweep, stages: Sequence[Stage], lab: Lab) -> Numerics:
    """The engines that are fastest for the networks of a sweep, chosen for dense and retrained ones apart."""
    dense = [sweep.dense_recipe(temperature) for temperature in sweep.temperatures()]
    # Snapshots of one training are one network; trainings that differ in batch size cannot go together.
    alike = Counter(recipe.batch_size for recipe in {each.model_copy(update={"stop": None}) for each in dense})
    retrained = sum(stage.kind == "retrain" for stage in stages)
    return dataclasses.replace(
        numerics,
        dense=choose_engine(lab, dense, min(alike.values()) * sweep.dense_seeds),
        engine=choose_engine(lab, [sweep.retrain], retrained),
    )


def choose_engine(lab: Lab, recipes: Iterable[Recipe], networks: int) -> str:
    """Return the fastest engine for these networks that keeps its promise of bits.

    It must do what "eager" does, in float64 up to rounding, and a lane's bits must depend neither on its slot nor on
    its neighbours, at every batch size of the sweep, with SAM where a recipe has it; that is tried, not assumed. Where
    an engine fails, raises, or gains nothing, "eager" it is.

    Args:
        lab: data, model, device.
        recipes: of everything that will be trained; the last one counts for time.
        networks: how many there will be; a handful is not worth stacking.
    """
    recipes = list({(recipe.batch_size, recipe.sam_rho > 0): recipe for recipe in recipes}.values())
    if networks < load(ENGINES, "stacked", "engine").capacity or has_private_randomness(lab.new_model(seed=0)):
        return "eager"
    try:
        eager, stacked = (seconds_per_image(lab, engine, recipes[-1]) for engine in ("eager", "stacked"))
        good = stacked < WORTH * eager and all(
            equals_eager(lab, "stacked", recipe) and keeps_bits(lab, "stacked", recipe) for recipe in recipes
        )
    except Exception:  # an operation that vmap does not know raises anything
        return "eager"
    return "stacked" if good else "eager"


def seconds_per_image(lab: Lab, engine: str, recipe: Recipe) -> float:
    """Seconds of one training step per image and network, on one thread; the best of two short trials."""
    kind: type[Engine] = load(ENGINES, engine, "engine")
    with one_thread():
        trial = kind(_lanes(lab, recipe, range(kind.capacity)), _few(lab.data, recipe))
        found = []
        for epoch in range(3):
            started = time.perf_counter()
            trial.epoch(epoch)
            found.append(time.perf_counter() - started)
    return min(found[1:]) / (kind.capacity * _steps(lab.data, recipe) * recipe.batch_size)


def keeps_bits(lab: Lab, engine: str, recipe: Recipe) -> bool:
    """Whether a network gets the same bits in the first slot, in the last beside others, and in a fleet of two."""
    kind: type[Engine] = load(ENGINES, engine, "engine")
    ends = []
    with one_thread():
        for members in ([0, *range(1, kind.capacity)], [*range(20, 20 + kind.capacity - 1), 0], [40, 0]):
            trial = kind(_lanes(lab, recipe, members), _few(lab.data, recipe))
            trial.epoch(0)
            slot = members.index(0)
            weights, momentum = trial.state(slot)
            ends.append(
                ({**weights, **{f"momentum/{name}": each for name, each in momentum.items()}}, trial.errors()[slot])
            )
    first, judged = ends[0]
    return all(
        errors == judged and all(torch.equal(first[name], other[name]) for name in first) for other, errors in ends[1:]
    )


def equals_eager(lab: Lab, engine: str, recipe: Recipe) -> bool:
    """Whether two networks trained for a few steps in float64 end where "eager" takes them: weights, buffers, errors.

    A model may do what an engine does not see: freeze a parameter, leave one unused, set a buffer anew.
    """
    data = _few(lab.data, recipe).to(lab.device, torch.float64)
    ends = []
    with one_thread():
        for name in ("eager", engine):
            kind: type[Engine] = load(ENGINES, name, "engine")
            lanes = [dataclasses.replace(each, model=each.model.double()) for each in _lanes(lab, recipe, [0, 1])]
            groups = [lanes[first : first + kind.capacity] for first in range(0, len(lanes), kind.capacity)]
            trials = [(kind(group, data), len(group)) for group in groups]
            for trial, _ in trials:
                trial.epoch(0)
            ends.append(
                [(trial.state(slot)[0], trial.errors()[slot]) for trial, size in trials for slot in range(size)]
            )
    return all(
        judged == errors and all(torch.allclose(one[name], other[name], rtol=1e-6, atol=1e-8) for name in one)
        for (one, judged), (other, errors) in zip(*ends, strict=True)
    )


def _lanes(lab: Lab, recipe: Recipe, seeds: Sequence[int]) -> list[Lane]:
    recipe = recipe.model_copy(update={"epochs": 3, "stop": None, "epoch_batch": None})
    return [Lane(lab.new_model(seed), recipe, ("trial", seed)) for seed in seeds]


def _few(data: Dataset, recipe: Recipe) -> Dataset:
    """The same data with a training split of a few batches, so that an epoch is a few steps."""
    images = _steps(data, recipe) * recipe.batch_size
    return dataclasses.replace(data, train=Split(data.train.inputs[:images], data.train.targets[:images]))


def _steps(data: Dataset, recipe: Recipe) -> int:
    return min(STEPS, len(data.train.targets) // recipe.batch_size)
