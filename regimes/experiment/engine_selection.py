"""Selection of the engine and of the number of lanes, by short trials on the sweep's own model."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from regimes.config.recipe import Recipe
from regimes.config.sweep import Sweep
from regimes.data.dataset import Dataset
from regimes.device_faults import reraise_device_fault
from regimes.errors import UserError
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.memory import networks_that_fit, release_memory
from regimes.experiment.schedule import fleet_count
from regimes.experiment.stages.stage import Stage
from regimes.registry import lookup
from regimes.training import ENGINES
from regimes.training.fleet import Engine, Lane
from regimes.training.vmap_engine import MIN_LANES, has_private_randomness

CHECKED_STEPS = 4  # steps of a trial that compares weights
TIMED_STEPS = {"cpu": 4, "cuda": 32}  # of a timed epoch; on a GPU its start takes as long as several steps of a graph
TIMED_EPOCHS = 4  # the fastest counts, after one warm-up, in which graphs are captured
TRIAL_IMAGES = 64  # validation and test images of a trial
MAX_STEP_SECONDS = 0.08  # eager steps on a CPU that take longer are bound by arithmetic: stacking saves nothing
MAX_TIME_SHARE = 0.95  # another engine, or more lanes, must take at most this fraction of the time
MAX_TIMED_SECONDS = 2.0  # after which no other epoch is timed
LANE_COUNTS = {"stacked": (8, 16, 32, 64), "graphed": (1, 2, 4, 8, 16, 32)}  # numbers of lanes to try
MIN_NETWORKS = {"stacked": MIN_LANES, "graphed": 1}  # with fewer, use "eager"
DEFAULT_LANES = 8  # without a trial


@dataclass(frozen=True)
class EngineChoice:
    """An engine and the number of networks it trains at once.

    Attributes:
        engine: a name in `ENGINES`.
        lanes: number of networks trained at once; 0: not decided yet.
        reason: why, in words.
    """

    engine: str
    lanes: int
    reason: str = field(default="", compare=False)


def select_engines(
    context: RunContext, sweep: Sweep, stages: Sequence[Stage], workers: int, sharing: int, lanes: int | None = None
) -> dict[str, EngineChoice]:
    """Return the fastest engine of a sweep's dense networks ("train") and of its retrained ones ("retrain").

    If width varies, an engine is chosen only if it is the choice for every width, with the smallest number of lanes.

    Args:
        context: data, model and device.
        sweep, stages: the sweep and its stages.
        workers, sharing, lanes: as for `select_engine`.
    """
    contexts, recipes = [context.sized(size) for size in sweep.sizes()], recipes_of(sweep)
    # Snapshots of one training are one network; trainings that differ in batch size cannot go together.
    dense = {each.model_copy(update={"stop": None}) for each in recipes["train"]}
    together = min(Counter(recipe.batch_size for recipe in dense).values())
    networks = {
        "train": 0 if sweep.dense else together * sweep.dense_seeds,
        "retrain": sum(stage.kind == "retrain" for stage in stages) // len(contexts),
    }
    chosen = {}
    for kind, count in networks.items():
        choices = [select_engine(each, recipes[kind], count, sharing, workers, lanes) for each in contexts]
        chosen[kind] = min(choices, key=lambda choice: (choice.engine != "eager", choice.lanes))
    return chosen


def select_engine(
    context: RunContext,
    recipes: Iterable[Recipe],
    networks: int,
    sharing: int = 1,
    workers: int = 1,
    lanes: int | None = None,
) -> EngineChoice:
    """Return the fastest engine whose results are correct and do not depend on the fleet, with the reason.

    Short trials time the engine of the device, and check it at every batch size of the sweep, and with SAM and clipping
    if a recipe uses them; see `flaw_of`. If it fails, raises or gains nothing, the result is "eager". With ``lanes`` it
    is checked only: it need not be faster.

    Args:
        context: data, model and device.
        recipes: recipes of all trainings; the last one is timed.
        networks: number of networks; a few are not worth stacking.
        sharing: number of workers that share the device's memory.
        workers: number of workers that share the networks.
        lanes: number of networks to train at once; None: the fastest.
    """
    recipes, model = _distinct(recipes), context.new_model(seed=0)
    name, tried = ("graphed" if context.device.type == "cuda" else "stacked"), "eager"
    if any(each.train for each in recipes):
        return _alone("a custom training loop trains one network at a time")
    if networks < MIN_NETWORKS[name]:
        return _alone(f"{networks} network{'s' * (networks > 1)} only" if networks else "nothing to train")
    if has_private_randomness(model):
        return _alone("networks with dropout draw random numbers in training")
    try:
        heaviest = max(recipes, key=lambda each: each.batch_size)
        least, most = (engine_of(name).slots(count, model) for count in (1, networks))
        if lanes is not None:
            lanes = lanes_that_fit(context, name, heaviest, min(lanes, most), sharing)
            flaw = flaw_of(context, EngineChoice(name, lanes), recipes)
            return _alone(flaw) if flaw else EngineChoice(name, lanes, "chosen with --lanes")
        if most < LANE_COUNTS[name][0]:
            return _alone(f"{networks} networks only")
        fit = networks_that_fit(context, heaviest, sharing)
        sizes = [each for each in LANE_COUNTS[name] if least <= each <= min(most, fit)]
        if not sizes:
            return _alone(f"only {fit} networks at once fit into the free memory")
        tried, padding = name, {each: _padding(name, networks, each, workers, model) for each in sizes}
        return _fastest(context, name, recipes, padding)
    except Exception as error:  # unsupported operations and lack of memory raise anything
        return _alone(_raised(tried, error))
    finally:
        release_memory(context.device)


def _distinct(recipes: Iterable[Recipe]) -> list[Recipe]:
    """The recipes that trials tell apart."""
    kinds = {(each.batch_size, each.sam_rho > 0, each.clip_norm > 0, each.optimizer): each for each in recipes}
    return list(kinds.values())


def _fastest(context: RunContext, name: str, recipes: Sequence[Recipe], padding: Mapping[int, float]) -> EngineChoice:
    """The number of lanes, of {lanes: lanes computed per network}, that is fastest and without a flaw, or "eager"."""
    batch = recipes[-1].batch_size
    try:
        eager = seconds_per_image(context, EngineChoice("eager", 1), recipes[-1])
    except Exception as error:
        return _alone(_raised("eager", error))
    if context.device.type == "cpu" and eager * batch > MAX_STEP_SECONDS:
        return _alone(f"a step takes {eager * batch:.2g} s, which stacking does not shorten")
    faster, fastest = list[EngineChoice](), eager
    for lanes, idle in padding.items():
        trial = EngineChoice(name, lanes)
        seconds = seconds_per_image(context, trial, recipes[-1]) * idle
        if seconds > MAX_TIME_SHARE * fastest:  # once more: the machine may have been busy
            seconds = min(seconds, seconds_per_image(context, trial, recipes[-1]) * idle)
        reason = f"{lanes} lane{'s train' if lanes > 1 else ' trains'} in {seconds / eager:.2f} of eager's time"
        if seconds > MAX_TIME_SHARE * fastest:
            break
        faster, fastest = [EngineChoice(name, lanes, reason), *faster], seconds
    flaw = f"{name}: {reason}"
    for choice in faster:  # bits may depend on the number of lanes only when it is large
        flaw = flaw_of(context, choice, recipes)
        if not flaw:
            return choice
    return _alone(flaw)


def flaw_of(context: RunContext, choice: EngineChoice, recipes: Iterable[Recipe]) -> str:
    """Return why an engine is not to be used for some recipes, "" if nothing speaks against it.

    It must equal "eager" in float64 up to rounding, and a lane's bits must depend neither on its slot nor on its
    neighbours nor on the number of lanes.
    """
    try:
        if not all(equals_eager(context, choice.engine, recipe) for recipe in recipes):
            return f"{choice.engine} trains other weights"
        if not all(keeps_bits(context, choice, recipe) for recipe in recipes):
            return f"{choice.engine} bits depend on the fleet of {choice.lanes} lanes"
    except Exception as error:
        return _raised(choice.engine, error)
    return ""


def with_lanes(
    choices: Mapping[str, EngineChoice],
    context: RunContext,
    sweep: Sweep,
    sharing: int,
    lanes: int | None,
    new: bool = False,
) -> dict[str, EngineChoice]:
    """Return engines that are not selected by trials with their numbers of lanes: fewer if memory is short.

    The number is not part of the numerics, because bits do not depend on it.

    Args:
        choices: {"train": ..., "retrain": ...}, with the usual numbers of lanes; 0: the default.
        context: data, model and device.
        sweep: the sweep.
        sharing: number of workers that share the device's memory.
        lanes: number of networks to train at once; None: the usual ones.
        new: whether the run has not begun, so that its engines, chosen by hand, are to be checked.

    Raises:
        UserError: a new run's engine, or this number of ``lanes``, has a flaw; see `flaw_of`.
    """
    contexts, found = [context.sized(size) for size in sweep.sizes()], dict(choices)
    for kind, recipes in recipes_of(sweep).items():
        engine, usual = choices[kind].engine, choices[kind].lanes
        largest = max(recipes, key=lambda recipe: recipe.batch_size)
        fit = [
            1 if engine == "eager" else lanes_that_fit(each, engine, largest, lanes or usual, sharing)
            for each in contexts
        ]
        found[kind] = dataclasses.replace(choices[kind], lanes=min(fit))
    for kind, recipes in recipes_of(sweep).items():
        more = lanes is not None and found[kind].lanes > max(1, choices[kind].lanes)  # not used by this run before
        untrained = (kind == "train" and sweep.dense is not None) or any(each.train for each in recipes)
        if found[kind].engine == "eager" or untrained or not (new or more):
            continue
        flaw = next(filter(None, (flaw_of(each, found[kind], _distinct(recipes)) for each in contexts)), "")
        if flaw and lanes is not None:
            raise UserError(f"--lanes {lanes}: {flaw}; leave --lanes out, or use --engine eager")
        if flaw and "OutOfMemoryError" not in flaw:  # a fleet that exceeds the memory is halved
            raise UserError(f"--engine {found[kind].engine}: {flaw}; leave --engine out, or use --engine eager")
    return found


def recipes_of(sweep: Sweep) -> dict[str, list[Recipe]]:
    """Return the recipes of a sweep's dense trainings ("train") and of its retrained copies ("retrain")."""
    return {"train": [sweep.dense_recipe(each) for each in sweep.temperatures()], "retrain": [sweep.retrain]}


def engine_of(name: str) -> type[Engine]:
    """Return the engine class of a name in `ENGINES`."""
    kind: type[Engine] = lookup(ENGINES, name, "engine")
    return kind


def lanes_that_fit(context: RunContext, engine: str, recipe: Recipe, wanted: int, sharing: int) -> int:
    """Return the largest number of lanes without idle ones up to ``wanted`` (0: the default) that fits into memory; at
    least the engine's minimum. If memory is the limit, a warning says so."""
    kind, model = engine_of(engine), context.new_model(seed=0)
    least, fit = kind.slots(1, model), networks_that_fit(context, recipe, sharing)
    wanted = wanted or max(DEFAULT_LANES, least)

    def full(most: int) -> int:
        counts = range(1, min(most, kind.capacity) + 1)
        return max((count for count in counts if kind.slots(count, model) == count), default=least)

    if full(fit) < full(wanted):
        text = f"{full(fit)} instead of {full(wanted)} networks are trained at once: more do not fit into the memory"
        warnings.warn(text, stacklevel=2)
    return full(min(wanted, fit))


def _alone(reason: str) -> EngineChoice:
    return EngineChoice("eager", 1, reason)


def _raised(engine: str, error: Exception) -> str:
    reraise_device_fault(error)
    return f"{engine} raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _padding(engine: str, networks: int, lanes: int, workers: int, model: nn.Module) -> float:
    """Lanes computed per network: an empty lane costs as much as a full one."""
    count = fleet_count(networks, lanes, workers)
    return count * engine_of(engine).slots(math.ceil(networks / count), model) / networks


# -- trials -----------------------------------------------------------------------------------------------------------


def seconds_per_image(context: RunContext, choice: EngineChoice, recipe: Recipe) -> float:
    """Return the seconds of a training step per image and network, on one thread: the fastest of a few epochs."""
    steps = _steps(context.data, recipe, TIMED_STEPS[context.device.type])
    with one_thread():
        trial = _trial(context, choice.engine, recipe, range(choice.lanes), steps)
        trial.epoch(0)
        found: list[float] = []
        while len(found) < TIMED_EPOCHS and sum(found) < MAX_TIMED_SECONDS:
            started = time.perf_counter()
            trial.epoch(1 + len(found))
            found.append(time.perf_counter() - started)
    return min(found) / (choice.lanes * steps * recipe.batch_size)


def keeps_bits(context: RunContext, choice: EngineChoice, recipe: Recipe) -> bool:
    """Return whether a network gets the same bits in the first slot, in the last slot, and in smaller fleets."""
    fleets = [[*range(choice.lanes)]] + [[20, 0]] * (engine_of(choice.engine).capacity > 1)
    lanes = engine_of(choice.engine).slots(3, context.new_model(seed=0))
    while lanes <= choice.lanes:  # every number of lanes that a fleet may have
        fleets.append([*range(20, 20 + lanes - 1), 0])
        lanes *= 2
    ends = []
    with one_thread():
        for members in fleets:
            trial = _trial(context, choice.engine, recipe, members, CHECKED_STEPS)
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
    data = _few(context.data, recipe, CHECKED_STEPS).to(context.device, torch.float64)
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


def _trial(context: RunContext, engine: str, recipe: Recipe, seeds: Sequence[int], steps: int) -> Engine:
    few, precision = _few(context.data, recipe, steps), context.spec.numerics.precision
    return engine_of(engine)(_lanes(context, recipe, seeds), few, precision)


def _lanes(context: RunContext, recipe: Recipe, seeds: Sequence[int]) -> list[Lane]:
    recipe = recipe.model_copy(update={"epochs": 1 + TIMED_EPOCHS, "stop": None, "epoch_batch": None})
    return [Lane(context.new_model(seed), recipe, ("trial", seed)) for seed in seeds]


def _few(data: Dataset, recipe: Recipe, steps: int) -> Dataset:
    """The same data with a few training batches and a few validation and test images, stored as before."""
    return dataclasses.replace(
        data,
        train=data.train.first(_steps(data, recipe, steps) * recipe.batch_size),
        val=data.val.first(TRIAL_IMAGES),
        test=data.test.first(TRIAL_IMAGES),
    )


def _steps(data: Dataset, recipe: Recipe, most: int) -> int:
    return min(most, len(data.train.targets) // recipe.batch_size)
