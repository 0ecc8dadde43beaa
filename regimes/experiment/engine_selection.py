"""Which engine trains, and how many networks at once: tried on the very model before the first run, then kept."""

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
from regimes.registry import load
from regimes.training import ENGINES
from regimes.training.fleet import Engine, Lane
from regimes.training.vmap_engine import LEAST, has_private_randomness

STEPS = 4  # of a trial
TRIALS = 4  # of which the best counts, after one that warms up
JUDGED = 64  # images its errors are taken on
SLOW = 0.08  # seconds of an eager step on a CPU from which it is bound by arithmetic: stacking saves nothing
WORTH = 0.95  # another engine, or more lanes, has to take less than this share of the time
PATIENCE = 2.0  # seconds of a trial after which two epochs have to do
SIZES = {"stacked": (8, 16, 32, 64), "graphed": (1, 2, 4, 8, 16, 32)}  # lanes that are tried
FEWEST = {"stacked": LEAST, "graphed": 1}  # networks that are worth another engine than "eager"
USUAL = 8  # lanes where nothing was tried


@dataclass(frozen=True)
class EngineChoice:
    """An engine, and how many networks it is given at once."""

    engine: str
    lanes: int


def select_engines(context: RunContext, sweep: Sweep, stages: Sequence[Stage], workers: int) -> dict[str, EngineChoice]:
    """What is fastest for the networks of a sweep, chosen for dense ("train") and retrained ones ("retrain") apart.

    Where width varies, the engine has to be the choice for every width, with as many lanes as suit them all.
    """
    labs = [context.sized(size) for size in sweep.sizes()]
    dense = [sweep.dense_recipe(temperature) for temperature in sweep.temperatures()]
    # Snapshots of one training are one network; trainings that differ in batch size cannot go together.
    alike = Counter(recipe.batch_size for recipe in {each.model_copy(update={"stop": None}) for each in dense})
    retrained = sum(stage.kind == "retrain" for stage in stages)
    trained = 0 if sweep.dense else min(alike.values()) * sweep.dense_seeds
    return {
        "train": _agreed([select_engine(each, dense, trained, workers) for each in labs]),
        "retrain": _agreed([select_engine(each, [sweep.retrain], retrained // len(labs), workers) for each in labs]),
    }


def _agreed(choices: Sequence[EngineChoice]) -> EngineChoice:
    least = min(choices, key=lambda choice: choice.lanes)
    return least if all(choice.engine == least.engine for choice in choices) else EngineChoice("eager", 1)


def select_engine(context: RunContext, recipes: Iterable[Recipe], networks: int, workers: int = 1) -> EngineChoice:
    """Return the fastest engine for these networks that keeps its promise of bits.

    It must do what "eager" does, in float64 up to rounding, and a lane's bits must depend neither on its slot nor on
    its neighbours nor on the number of lanes, at every batch size of the sweep, with SAM where a recipe has it; that is
    tried, not assumed. Where an engine fails, raises, or gains nothing, "eager" it is.

    Args:
        context: data, model, device.
        recipes: of everything that will be trained; the last one counts for time.
        networks: how many there will be; a handful is not worth stacking.
        workers: processes that share the memory.
    """
    alone = EngineChoice("eager", 1)
    recipes = list({(recipe.batch_size, recipe.sam_rho > 0): recipe for recipe in recipes}.values())
    model = context.new_model(seed=0)
    name = "graphed" if context.device.type == "cuda" else "stacked"
    if networks < FEWEST[name] or has_private_randomness(model):
        return alone
    try:
        slots = engine_of(name).slots
        fit = networks_that_fit(context, max(recipes, key=lambda each: each.batch_size), workers)
        sizes = [each for each in SIZES[name] if slots(1, model) <= each <= min(slots(networks, model), fit)]
        seconds, faster = seconds_per_image(context, alone, recipes[-1]), list[EngineChoice]()
        if context.device.type == "cpu" and seconds * recipes[-1].batch_size > SLOW:
            return alone
        for lanes in sizes:
            choice, idle = EngineChoice(name, lanes), _padding(name, networks, lanes, workers, model)
            trial = seconds_per_image(context, choice, recipes[-1]) * idle
            if trial > WORTH * seconds:  # once more: a busy machine takes its time from whom it likes
                trial = min(trial, seconds_per_image(context, choice, recipes[-1]) * idle)
            if trial > WORTH * seconds:
                break
            faster, seconds = [choice, *faster], trial
        if not faster or not all(equals_eager(context, name, recipe) for recipe in recipes):
            return alone
        for choice in faster:  # bits may rest on the number of lanes among many, and not among few
            if all(keeps_bits(context, choice, recipe) for recipe in recipes):
                return choice
        return alone
    except Exception:  # an operation that vmap does not know raises anything, as a memory too small does
        return alone


def engine_of(name: str) -> type[Engine]:
    """The engine of a name in `ENGINES`."""
    kind: type[Engine] = load(ENGINES, name, "engine")
    return kind


def lanes_that_fit(context: RunContext, engine: str, recipe: Recipe, wanted: int, workers: int) -> int:
    """A number of lanes: as many as wanted (0: as are usual), or as fit into memory, or else the least there is."""
    least = engine_of(engine).slots(1, context.new_model(seed=0))
    most = min(wanted or max(USUAL, least), networks_that_fit(context, recipe, workers))
    return max(least, 1 << (most.bit_length() - 1))


def _padding(engine: str, networks: int, lanes: int, workers: int, model: nn.Module) -> float:
    """Lanes that will be computed over networks that there are: an empty lane costs as much as a full one."""
    count = fleet_count(networks, lanes, workers)
    return count * engine_of(engine).slots(math.ceil(networks / count), model) / networks


def seconds_per_image(context: RunContext, choice: EngineChoice, recipe: Recipe) -> float:
    """Seconds of one training step per image and network, on one thread; the best of a few short trials."""
    with one_thread():
        trial = _trial(context, choice.engine, recipe, range(choice.lanes))
        found = []
        for epoch in range(1 + TRIALS):
            started = time.perf_counter()
            trial.epoch(epoch)
            found.append(time.perf_counter() - started)
            if epoch and sum(found) > PATIENCE:
                break
    return min(found[1:]) / (choice.lanes * _steps(context.data, recipe) * recipe.batch_size)


def keeps_bits(context: RunContext, choice: EngineChoice, recipe: Recipe) -> bool:
    """Whether a network gets the same bits in the first slot, in the last beside others, and in smaller fleets."""
    fleets = [[*range(choice.lanes)], [20, 0]]
    lanes = engine_of(choice.engine).slots(3, context.new_model(seed=0))
    while lanes <= choice.lanes:  # every number of lanes that a fleet may come to
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
    """Whether two networks trained for a few steps in float64 end where "eager" takes them: weights, buffers, errors.

    A model may do what an engine does not see: freeze a parameter, leave one unused, set a buffer anew.
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
    recipe = recipe.model_copy(update={"epochs": 1 + TRIALS, "stop": None, "epoch_batch": None})
    return [Lane(context.new_model(seed), recipe, ("trial", seed)) for seed in seeds]


def _few(data: Dataset, recipe: Recipe) -> Dataset:
    """The same data with a training split of a few batches, so that an epoch is a few steps, and few to judge on."""

    def first(split: Split, images: int) -> Split:
        return Split(split.inputs[:images], split.targets[:images])

    images = _steps(data, recipe) * recipe.batch_size
    return dataclasses.replace(
        data, train=first(data.train, images), val=first(data.val, JUDGED), test=first(data.test, JUDGED)
    )


def _steps(data: Dataset, recipe: Recipe) -> int:
    return min(STEPS, len(data.train.targets) // recipe.batch_size)
