"""Selection of the engine and of the number of lanes, by short trials on the sweep's own model."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from regimes.config.recipe import Recipe
from regimes.config.sweep import Sweep
from regimes.data.dataset import Dataset, Split
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.memory import networks_that_fit
from regimes.experiment.schedule import fleet_count
from regimes.experiment.stages.stage import Stage
from regimes.registry import lookup
from regimes.training import ENGINES
from regimes.training.fleet import Engine, Lane
from regimes.training.vmap_engine import MIN_LANES, has_private_randomness

TRIAL_STEPS = 4  # steps of a trial epoch
TIMED_EPOCHS = 4  # the fastest counts, after one warm-up
TRIAL_IMAGES = 64  # validation and test images of a trial
MAX_STEP_SECONDS = 0.08  # eager steps on a CPU that take longer are bound by arithmetic: stacking saves nothing
MAX_TIME_SHARE = 0.95  # another engine, or more lanes, must take at most this fraction of the time
MAX_TRIAL_SECONDS = 2.0  # a trial that takes longer ends after two epochs
LANE_COUNTS = {"stacked": (8, 16, 32, 64), "graphed": (1, 2, 4, 8, 16, 32)}  # numbers of lanes to try
MIN_NETWORKS = {"stacked": MIN_LANES, "graphed": 1}  # with fewer, use "eager"
DEFAULT_LANES = 8  # without a trial


@dataclass(frozen=True)
class EngineChoice:
    """An engine and the number of networks it trains at once."""

    engine: str
    lanes: int


def select_engines(context: RunContext, sweep: Sweep, stages: Sequence[Stage], workers: int) -> dict[str, EngineChoice]:
    """Return the fastest engine of a sweep's dense networks ("train") and of its retrained ones ("retrain").

    If width varies, an engine is chosen only if it is the choice for every width, with the smallest number of lanes.
    """
    contexts = [context.sized(size) for size in sweep.sizes()]
    dense = [sweep.dense_recipe(temperature) for temperature in sweep.temperatures()]
    # Snapshots of one training are one network; trainings that differ in batch size cannot go together.
    by_batch_size = Counter(recipe.batch_size for recipe in {each.model_copy(update={"stop": None}) for each in dense})
    retrained = sum(stage.kind == "retrain" for stage in stages)
    trained = 0 if sweep.dense else min(by_batch_size.values()) * sweep.dense_seeds
    return {
        "train": _agreed([select_engine(each, dense, trained, workers) for each in contexts]),
        "retrain": _agreed(
            [select_engine(each, [sweep.retrain], retrained // len(contexts), workers) for each in contexts]
        ),
    }


def _agreed(choices: Sequence[EngineChoice]) -> EngineChoice:
    least = min(choices, key=lambda choice: choice.lanes)
    return least if all(choice.engine == least.engine for choice in choices) else EngineChoice("eager", 1)


def select_engine(context: RunContext, recipes: Iterable[Recipe], networks: int, workers: int = 1) -> EngineChoice:
    """Return the fastest engine whose results are correct and do not depend on the fleet.

    Short trials check that the engine equals "eager" in float64 up to rounding, and that a lane's bits depend neither
    on its slot nor on its neighbours nor on the number of lanes, at every batch size of the sweep, and with SAM and
    clipping if a recipe uses them. If an engine fails, raises or gains nothing, the result is "eager".

    Args:
        context: data, model and device.
        recipes: recipes of all trainings; the last one is timed.
        networks: number of networks; a few are not worth stacking.
        workers: number of processes that share the memory.
    """
    alone = EngineChoice("eager", 1)
    kinds = {(each.batch_size, each.sam_rho > 0, each.clip_norm > 0, each.optimizer): each for each in recipes}
    recipes = list(kinds.values())
    model = context.new_model(seed=0)
    name = "graphed" if context.device.type == "cuda" else "stacked"
    if any(each.train for each in recipes) or networks < MIN_NETWORKS[name] or has_private_randomness(model):
        return alone
    try:
        slots = engine_of(name).slots
        fit = networks_that_fit(context, max(recipes, key=lambda each: each.batch_size), workers)
        sizes = [each for each in LANE_COUNTS[name] if slots(1, model) <= each <= min(slots(networks, model), fit)]
        seconds, faster = seconds_per_image(context, alone, recipes[-1]), list[EngineChoice]()
        if context.device.type == "cpu" and seconds * recipes[-1].batch_size > MAX_STEP_SECONDS:
            return alone
        for lanes in sizes:
            choice, idle = EngineChoice(name, lanes), _padding(name, networks, lanes, workers, model)
            trial = seconds_per_image(context, choice, recipes[-1]) * idle
            if trial > MAX_TIME_SHARE * seconds:  # once more: the machine may have been busy
                trial = min(trial, seconds_per_image(context, choice, recipes[-1]) * idle)
            if trial > MAX_TIME_SHARE * seconds:
                break
            faster, seconds = [choice, *faster], trial
        if not faster or not all(equals_eager(context, name, recipe) for recipe in recipes):
            return alone
        for choice in faster:  # bits may depend on the number of lanes only when it is large
            if all(keeps_bits(context, choice, recipe) for recipe in recipes):
                return choice
        return alone
    except Exception:  # unsupported operations and lack of memory raise anything
        return alone


def engine_of(name: str) -> type[Engine]:
    """Return the engine class of a name in `ENGINES`."""
    kind: type[Engine] = lookup(ENGINES, name, "engine")
    return kind


def lanes_that_fit(context: RunContext, engine: str, recipe: Recipe, wanted: int, workers: int) -> int:
    """Return a number of lanes: ``wanted`` (0: the default), but at most what fits into memory, a power of two."""
    least = engine_of(engine).slots(1, context.new_model(seed=0))
    most = min(wanted or max(DEFAULT_LANES, least), networks_that_fit(context, recipe, workers))
    return max(least, 1 << (most.bit_length() - 1))


def _padding(engine: str, networks: int, lanes: int, workers: int, model: nn.Module) -> float:
    """Lanes computed per network: an empty lane costs as much as a full one."""
    count = fleet_count(networks, lanes, workers)
    return count * engine_of(engine).slots(math.ceil(networks / count), model) / networks


def seconds_per_image(context: RunContext, choice: EngineChoice, recipe: Recipe) -> float:
    """Return the seconds of a training step per image and network, on one thread; the fastest of a few epochs."""
    with one_thread():
        trial = _trial(context, choice.engine, recipe, range(choice.lanes))
        found = []
        for epoch in range(1 + TIMED_EPOCHS):
            started = time.perf_counter()
            trial.epoch(epoch)
            found.append(time.perf_counter() - started)
            if epoch and sum(found) > MAX_TRIAL_SECONDS:
                break
    return min(found[1:]) / (choice.lanes * _steps(context.data, recipe) * recipe.batch_size)


def keeps_bits(context: RunContext, choice: EngineChoice, recipe: Recipe) -> bool:
    """Return whether a network gets the same bits in the first slot, in the last slot, and in smaller fleets."""
    fleets = [[*range(choice.lanes)], [20, 0]]
    lanes = engine_of(choice.engine).slots(3, context.new_model(seed=0))
    while lanes <= choice.lanes:  # every number of lanes that a fleet may have
        fleets.append([*range(20, 20 + lanes - 1), 0])
        lanes *= 2
    ends = []
    with one_thread():
        for members in fleets:
            trial = _trial(context, choice.engine, recipe, members)
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


def equals_eager(context: RunContext, engine: str, recipe: Recipe) -> bool:
    """Return whether a few steps in float64 give the same weights, buffers and errors as "eager".

    They may differ if a model freezes a parameter, leaves one unused, or reassigns a buffer.
    """
    data = _few(context.data, recipe).to(context.device, torch.float64)
    ends = []
    with one_thread():
        for name in ("eager", engine):
            kind = engine_of(name)
            lanes = [dataclasses.replace(each, model=each.model.double()) for each in _lanes(context, recipe, [0, 1])]
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


def _trial(context: RunContext, engine: str, recipe: Recipe, seeds: Sequence[int]) -> Engine:
    return engine_of(engine)(
        _lanes(context, recipe, seeds), _few(context.data, recipe), context.spec.numerics.precision
    )


def _lanes(context: RunContext, recipe: Recipe, seeds: Sequence[int]) -> list[Lane]:
    recipe = recipe.model_copy(update={"epochs": 1 + TIMED_EPOCHS, "stop": None, "epoch_batch": None})
    return [Lane(context.new_model(seed), recipe, ("trial", seed)) for seed in seeds]


def _few(data: Dataset, recipe: Recipe) -> Dataset:
    """The same data with a few training batches and a few validation and test images."""

    def first(split: Split, images: int) -> Split:
        return Split(split.inputs[:images], split.targets[:images])

    images = _steps(data, recipe) * recipe.batch_size
    return dataclasses.replace(
        data, train=first(data.train, images), val=first(data.val, TRIAL_IMAGES), test=first(data.test, TRIAL_IMAGES)
    )


def _steps(data: Dataset, recipe: Recipe) -> int:
    return min(TRIAL_STEPS, len(data.train.targets) // recipe.batch_size)
