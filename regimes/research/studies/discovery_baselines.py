"""Discovered networks against what else one could have trained: each arm from the same seed, timed as a whole."""

from __future__ import annotations

import copy
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regimes.config.discovery import Pressure
from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.config.sweep import Named
from regimes.discovery.api import epochs, found
from regimes.discovery.complexity import size_of
from regimes.discovery.gated_training import GatedTraining
from regimes.discovery.trace_graph import anatomy_of
from regimes.experiment.context import ContextSpec, RunContext, numerics_of, one_thread
from regimes.experiment.parent_watchdog import end_with
from regimes.experiment.run_discovery import inference_seconds
from regimes.landscape.error import mean_error
from regimes.models.residual_blocks import without_blocks
from regimes.pruners.channels import fitted, shrink
from regimes.research.page import Say
from regimes.training.optimizer_step import OptimizerStep
from regimes.training.train import train

ARMS = {
    "dense": "the whole network",
    "discovered": "units and blocks leave while it trains",
    "magnitude": "the dense network, channels pruned by magnitude (torch-pruning) to as many MACs, fine-tuned",
    "scratch": "the structure discovered, from fresh weights",
    "narrowed": "fewer channels everywhere, as fast in a measured training step, from fresh weights",
}
TUNED = 3  # fine-tuning takes one part in so many of the epochs
CLOSE = 0.02  # of the MACs that channel pruning has to meet
STEPS = 12  # by which a training step is timed
ROUNDS = 3  # in which two networks are timed in turn, the least of each counts


@dataclass(frozen=True)
class Contest:
    """One comparison.

    Attributes:
        name: for people.
        data, model: which.
        recipe: of every training from fresh weights.
        nus: pressures.
        seeds: trainings of each arm.
        widths: among which a narrowed network is looked for.
    """

    name: str
    data: Named
    model: Named
    recipe: Recipe
    nus: tuple[float, ...]
    seeds: int
    widths: tuple[int, ...]


def compete(contest: Contest, workers: int, say: Say) -> list[dict[str, Any]]:
    """All arms of all seeds, one record each; seeds side by side in processes of one thread."""
    context = multiprocessing.get_context("spawn")
    records = []
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with, initargs=(os.getpid(),)) as pool:
        for seed, found_there in enumerate(pool.map(_seed, [contest] * contest.seeds, range(contest.seeds))):
            records += found_there
            say(f"{contest.name}: seed {seed} done")
    return records


def _seed(contest: Contest, seed: int) -> list[dict[str, Any]]:
    numerics = numerics_of("cpu", "eager", "eager")
    context = RunContext(ContextSpec(contest.data, contest.model, "cpu", numerics, ""))
    with one_thread():
        return [{**record, "seed": seed} for record in _arms(contest, context, seed)]


def _arms(contest: Contest, context: RunContext, seed: int) -> Iterator[dict[str, Any]]:
    init = seed_of("init", seed)
    dense = context.new_model(init)
    taken = _train(dense, context, contest.recipe, seed)
    yield _record("dense", dense, context, contest, taken, None)
    for nu in contest.nus:
        started = time.perf_counter()
        search = GatedTraining(context.new_model(init), context.data, contest.recipe, Pressure(nu=nu), ("dense", seed))
        for _ in epochs(search):
            pass
        spent, discovery = time.perf_counter() - started, found(search)
        small = discovery.model
        row = _record("discovered", small, context, contest, spent, nu)
        layers = [group.name for group in search.full_anatomy.groups]
        about = {"history": discovery.history, "widths": discovery.widths, "blocks": discovery.blocks, "layers": layers}
        yield {**row, **about, "message": discovery.message}
        started = time.perf_counter()
        pruned = _to_macs(dense, context, row["macs"], seed)
        spent = time.perf_counter() - started
        share = max(1, contest.recipe.epochs // TUNED)
        tuning = contest.recipe.model_copy(
            update={"epochs": share, "learning_rate": contest.recipe.learning_rate / 5, "schedule": "cosine"}
        )
        yield _record("magnitude", pruned, context, contest, taken + spent + _train(pruned, context, tuning, seed), nu)
        fresh = fitted(without_blocks(context.new_model(init), small.state_dict()), small.state_dict())
        _begin_anew(fresh, init)
        yield _record("scratch", fresh, context, contest, _train(fresh, context, contest.recipe, seed), nu)
        width = _as_fast(small, contest, context)
        narrow = context.sized({"width": width}).new_model(init)
        row = _record("narrowed", narrow, context, contest, _train(narrow, context, contest.recipe, seed), nu)
        yield {**row, "width": width}


def _train(model: nn.Module, context: RunContext, recipe: Recipe, seed: int) -> float:
    """Train a plain network; returns its seconds, one evaluation at the end included."""
    started = time.perf_counter()
    once = recipe.model_copy(update={"last": 1})  # evaluated at the end alone
    for _ in train(model, context.data, once, ("dense", seed), [recipe.epochs], evaluate_all=False):
        pass
    return time.perf_counter() - started


def _record(
    arm: str, model: nn.Module, context: RunContext, contest: Contest, seconds: float, nu: float | None
) -> dict[str, Any]:
    whole, size = (size_of(anatomy_of(each, context.data.train.inputs[:2])) for each in (context.new_model(0), model))
    return {
        "arm": arm,
        "nu": nu,
        "test_error": mean_error(model, context.data.test, contest.recipe.loss_fn),
        "macs": float(size.macs),
        "params": float(size.params),
        "full_macs": float(whole.macs),
        "full_params": float(whole.params),
        "train_seconds": seconds,
        "step_seconds": step_seconds(model, context, contest.recipe),
        "inference_seconds": inference_seconds(model, context.data.test.inputs),
    }


def _to_macs(dense: nn.Module, context: RunContext, macs: float, seed: int) -> nn.Module:
    """The dense network with channels pruned by magnitude until its MACs are those asked for."""
    inputs = context.data.train.inputs[:2]
    low, high, density = 0.0, 1.0, macs / float(size_of(anatomy_of(dense, inputs)).macs)
    best, off = dense, float("inf")
    for _ in range(10):
        small, _ = shrink(dense, density, inputs, "channels-magnitude", "global", seed)
        there = float(size_of(anatomy_of(small, inputs)).macs)
        if abs(there / macs - 1) < off:
            best, off = small, abs(there / macs - 1)
        if off <= CLOSE:
            break
        low, high = (low, density) if there > macs else (density, high)
        density = (low + high) / 2
    return best


def _begin_anew(model: nn.Module, seed: int) -> None:
    """Fresh weights for a network whose layers have other sizes than its class gives them: He-normal, fan-out, as the
    class's own; the linear head as torch begins one; scales 1, shifts 0."""
    random = torch.Generator().manual_seed(seed % 2**63)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            out = module.weight.shape[0] * module.weight[0, 0].numel()
            module.weight.data.copy_(torch.randn(module.weight.shape, generator=random) * (2 / out) ** 0.5)
            if module.bias is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            module.weight.data.copy_((2 * torch.rand(module.weight.shape, generator=random) - 1) * bound)
            module.bias.data.copy_((2 * torch.rand(module.bias.shape, generator=random) - 1) * bound)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def step_seconds(model: nn.Module, context: RunContext, recipe: Recipe) -> float:
    """Seconds of a training step: the median of some, of a copy of the network."""
    trial = copy.deepcopy(model).train()
    stepper, found_there = OptimizerStep(trial, recipe, None), []
    inputs, targets = context.data.train.inputs[: recipe.batch_size], context.data.train.targets[: recipe.batch_size]
    for _ in range(STEPS):
        started = time.perf_counter()
        stepper(lambda: recipe.training_loss(trial(inputs), targets), 1e-4)
        found_there.append(time.perf_counter() - started)
    return sorted(found_there[2:])[(STEPS - 2) // 2]


def _as_fast(small: nn.Module, contest: Contest, context: RunContext) -> int:
    """The largest width whose training step is no slower than a network's, each timed in turn."""
    fits = [contest.widths[0]]
    for width in contest.widths:
        narrow = context.sized({"width": width}).new_model(0)
        rounds = [[step_seconds(each, context, contest.recipe) for each in (small, narrow)] for _ in range(ROUNDS)]
        wanted, taken = (min(times) for times in zip(*rounds, strict=True))
        if taken <= wanted:
            fits.append(width)
    return max(fits)
