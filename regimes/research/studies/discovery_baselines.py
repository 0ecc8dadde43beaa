"""Baselines of structure discovery: networks trained from the same seed and timed as a whole."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regimes.config.discovery import Pressure
from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.config.sweep import Named
from regimes.discovery.api import discovery_of, train_epochs
from regimes.discovery.complexity import size_of
from regimes.discovery.gated_training import GatedTraining
from regimes.discovery.trace_graph import trace_graph
from regimes.experiment.context import ContextSpec, RunContext, one_thread
from regimes.experiment.parent_watchdog import exit_with_parent
from regimes.experiment.run_discovery import inference_seconds
from regimes.landscape.error import mean_error
from regimes.models.residual_blocks import remove_missing_blocks
from regimes.plots.text_table import hardware_and_versions
from regimes.pruners.channels import fit_to_state, shrink
from regimes.research.page import Say
from regimes.training.optimizer_step import OptimizerStep
from regimes.training.train import train

NETWORKS = {
    "dense": "the full network",
    "discovered": "units and blocks are removed during training",
    "magnitude": "the dense network with channels pruned by magnitude (torch-pruning) to the same MACs, fine-tuned",
    "scratch": "the discovered structure, trained from fresh weights",
    "narrowed": "a uniformly narrower network with an equally fast training step, trained from fresh weights",
}
FINE_TUNING_DIVISOR = 3  # fine-tuning takes 1 / FINE_TUNING_DIVISOR of the epochs
MACS_TOLERANCE = 0.02  # relative, of channel pruning
TIMED_STEPS = 12  # to time a training step
TIMING_ROUNDS = 3  # two networks are timed in turn; the minimum counts


@dataclass(frozen=True)
class BaselineExperiment:
    """Configuration of one comparison.

    Attributes:
        name: name of the comparison and of its file.
        data, model: data set and dense network.
        recipe: recipe of every training from fresh weights.
        nus: pressures of the discoveries.
        seeds: number of seeds of each network.
        widths: candidate widths of the narrowed network.
    """

    name: str
    data: Named
    model: Named
    recipe: Recipe
    nus: tuple[float, ...]
    seeds: int
    widths: tuple[int, ...]


def named(name: str, **options: Any) -> Named:
    """Return a registry name with options."""
    return Named.model_validate({"name": name, **options})


DIGITS = BaselineExperiment(
    name="digits",
    data=named("digits"),
    model=named("preresnet", depth=14, width=8),
    recipe=Recipe(epochs=40, batch_size=64, augment="none"),
    nus=(0.1, 0.3),
    seeds=5,
    widths=(2, 3, 4, 5, 6, 7, 8),
)
CIFAR = BaselineExperiment(
    name="cifar10",
    data=named("imagefolder", root="data/cifar10-jpeg", images=3000, test_images=2000),
    model=named("resnet", depth=20, width=16),
    recipe=Recipe(epochs=20, batch_size=64, schedule="cosine", weight_decay=5e-4),
    nus=(0.1, 0.3),
    seeds=3,
    widths=(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16),
)


def load_or_train(experiment: BaselineExperiment, out: Path, say: Say) -> dict[str, Any]:
    """Return {"where": machine and versions, "records": results of all networks}.

    Results are read from ``out`` or, if missing, measured and saved there, in one process for comparable timings.
    """
    file = out / f"{experiment.name}.json"
    if not file.exists():
        found = {"where": hardware_and_versions(), "records": train_networks(experiment, 1, say)}
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found) + "\n")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def train_networks(experiment: BaselineExperiment, workers: int, say: Say) -> list[dict[str, Any]]:
    """Train all networks for all seeds, with seeds in parallel single-threaded processes; return one record each."""
    context = multiprocessing.get_context("spawn")
    records = []
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=exit_with_parent, initargs=(os.getpid(),)
    ) as pool:
        for seed, results in enumerate(pool.map(_seed, [experiment] * experiment.seeds, range(experiment.seeds))):
            records += results
            say(f"{experiment.name}: seed {seed} done")
    return records


def _seed(experiment: BaselineExperiment, seed: int) -> list[dict[str, Any]]:
    context = RunContext(ContextSpec.eager(experiment.data, experiment.model, "cpu"))
    with one_thread():
        return [{**record, "seed": seed} for record in _networks(experiment, context, seed)]


def _networks(experiment: BaselineExperiment, context: RunContext, seed: int) -> Iterator[dict[str, Any]]:
    init = seed_of("init", seed)
    dense = context.new_model(init)
    taken = _train(dense, context, experiment.recipe, seed)
    yield _record("dense", dense, context, experiment, taken, None)
    for nu in experiment.nus:
        started = time.perf_counter()
        search = GatedTraining(
            context.new_model(init), context.data, experiment.recipe, Pressure(nu=nu), ("dense", seed)
        )
        for _ in train_epochs(search):
            pass
        spent, discovery = time.perf_counter() - started, discovery_of(search)
        small = discovery.model
        row = _record("discovered", small, context, experiment, spent, nu)
        layers = [group.name for group in search.full_graph.groups]
        about = {"history": discovery.history, "widths": discovery.widths, "blocks": discovery.blocks, "layers": layers}
        yield {**row, **about, "message": discovery.message}
        started = time.perf_counter()
        pruned = _to_macs(dense, context, row["macs"], seed)
        spent = time.perf_counter() - started
        share = max(1, experiment.recipe.epochs // FINE_TUNING_DIVISOR)
        tuning = experiment.recipe.model_copy(
            update={"epochs": share, "learning_rate": experiment.recipe.learning_rate / 5, "schedule": "cosine"}
        )
        yield _record(
            "magnitude", pruned, context, experiment, taken + spent + _train(pruned, context, tuning, seed), nu
        )
        fresh = fit_to_state(remove_missing_blocks(context.new_model(init), small.state_dict()), small.state_dict())
        _initialize(fresh, init)
        yield _record("scratch", fresh, context, experiment, _train(fresh, context, experiment.recipe, seed), nu)
        width = _as_fast(small, experiment, context)
        narrow = context.sized({"width": width}).new_model(init)
        row = _record("narrowed", narrow, context, experiment, _train(narrow, context, experiment.recipe, seed), nu)
        yield {**row, "width": width}


def _train(model: nn.Module, context: RunContext, recipe: Recipe, seed: int) -> float:
    """Train a network and return the seconds, including one final evaluation."""
    started = time.perf_counter()
    once = recipe.model_copy(update={"last": 1})  # evaluated at the end alone
    for _ in train(model, context.data, once, ("dense", seed), [recipe.epochs], evaluate_all=False):
        pass
    return time.perf_counter() - started


def _record(
    network: str,
    model: nn.Module,
    context: RunContext,
    experiment: BaselineExperiment,
    seconds: float,
    nu: float | None,
) -> dict[str, Any]:
    whole, size = (size_of(trace_graph(each, context.data.train.inputs[:2])) for each in (context.new_model(0), model))
    return {
        "arm": network,
        "nu": nu,
        "test_error": mean_error(model, context.data.test, experiment.recipe.loss_fn),
        "macs": float(size.macs),
        "params": float(size.params),
        "full_macs": float(whole.macs),
        "full_params": float(whole.params),
        "train_seconds": seconds,
        "step_seconds": step_seconds(model, context, experiment.recipe),
        "inference_seconds": inference_seconds(model, context.data.test.inputs),
    }


def _to_macs(dense: nn.Module, context: RunContext, macs: float, seed: int) -> nn.Module:
    """The dense network with channels pruned by magnitude to the given MACs."""
    inputs = context.data.train.inputs[:2]
    low, high, density = 0.0, 1.0, macs / float(size_of(trace_graph(dense, inputs)).macs)
    best, off = dense, float("inf")
    for _ in range(10):
        small, _ = shrink(dense, density, inputs, "channels-magnitude", "global", seed)
        there = float(size_of(trace_graph(small, inputs)).macs)
        if abs(there / macs - 1) < off:
            best, off = small, abs(there / macs - 1)
        if off <= MACS_TOLERANCE:
            break
        low, high = (low, density) if there > macs else (density, high)
        density = (low + high) / 2
    return best


def _initialize(model: nn.Module, seed: int) -> None:
    """Initialize the weights of a network with non-standard layer sizes: He-normal (fan-out) convolutions, torch's
    default linear layers, BatchNorm scales 1 and shifts 0."""
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
    """Return the median seconds of a training step, measured on a copy of the network."""
    trial = copy.deepcopy(model).train()
    stepper, results = OptimizerStep(trial, recipe, None), []
    inputs, targets = context.data.train.inputs[: recipe.batch_size], context.data.train.targets[: recipe.batch_size]
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        stepper(lambda: recipe.training_loss(trial(inputs), targets), 1e-4)
        results.append(time.perf_counter() - started)
    return sorted(results[2:])[(TIMED_STEPS - 2) // 2]


def _as_fast(small: nn.Module, experiment: BaselineExperiment, context: RunContext) -> int:
    """The largest width whose training step is no slower than the given network's, timed in turn."""
    fits = [experiment.widths[0]]
    for width in experiment.widths:
        narrow = context.sized({"width": width}).new_model(0)
        rounds = [
            [step_seconds(each, context, experiment.recipe) for each in (small, narrow)] for _ in range(TIMING_ROUNDS)
        ]
        wanted, taken = (min(times) for times in zip(*rounds, strict=True))
        if taken <= wanted:
            fits.append(width)
    return max(fits)
