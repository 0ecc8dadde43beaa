"""Runner of discovery files: one training for each pressure and seed, resumed if interrupted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regimes.config.discovery import Pressure
from regimes.config.discovery_file import DiscoveryConfig
from regimes.config.keys import SCHEMA, digest, seed_of
from regimes.config.recipe import Recipe
from regimes.data.inputs import Inputs, call
from regimes.discovery import ESTIMATORS
from regimes.discovery.api import Discovery, DiscoveryCheckpoint, discovery_of, train_epochs
from regimes.discovery.gated_training import GatedTraining, Row
from regimes.discovery.save_network import PLAN, WEIGHTS, save
from regimes.errors import RunFailed, UserError
from regimes.experiment.atomic_files import DamagedFile, Record, read_checked, write_atomic, write_checked
from regimes.experiment.context import ContextSpec, RunContext, one_thread
from regimes.experiment.memory import synchronize
from regimes.experiment.preflight import check_recipe
from regimes.landscape.error import mean_error
from regimes.registry import source_id

RECORD, PROGRESS = "discovery.json", "progress"
SAVE_INTERVAL = 10.0  # seconds of training between two checkpoints
TIMING_BATCH, TIMING_PASSES = 256, 20  # for the inference time

Watch = Callable[["DiscoveryTask", Row], None]


@dataclass(frozen=True)
class DiscoveryTask:
    """One training of a `DiscoveryConfig`.

    Attributes:
        config: the discovery file.
        pressure: the pressure of this training.
        seed: the seed of this training.
        folder: the folder of its files.
    """

    config: DiscoveryConfig
    pressure: Pressure
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """The pressure and the seed, for display."""
        return f"nu {self.pressure.nu:g}, seed {self.seed}"

    def claim(self) -> str:
        """Return the name of its claim."""
        return self.folder.name


def tasks(config: DiscoveryConfig, out: Path) -> list[DiscoveryTask]:
    """Return all trainings of a discovery file, seed by seed."""
    return [
        DiscoveryTask(config, pressure, seed, out / f"nu-{pressure.nu:.12g}-seed-{seed}")
        for seed in range(config.seeds)
        for pressure in config.pressures
    ]


def context_of(config: DiscoveryConfig, device: str, folder: Path) -> RunContext:
    """Return the run context of a discovery file, after checking that the model fits the data."""
    context = RunContext(ContextSpec.eager(config.data, config.model, device, folder))
    context.check_model()
    return context


def checked_context_of(config: DiscoveryConfig, device: str, folder: Path) -> RunContext:
    """Return the run context of a discovery file, after checking that model and recipe fit the data."""
    context = context_of(config, device, folder)
    check_recipe(config.recipe, context)
    return context


def run_task(task: DiscoveryTask, context: RunContext, watch: Watch | None = None) -> Record:
    """Run or resume one training; return its record, which is also written to its folder with the network.

    Raises:
        UserError: the folder holds another discovery; see `regimes.discover` for others.
        RunFailed: the loss is not finite.
    """
    key = digest(_describe(task, context))
    done = _read(task.folder / RECORD)
    if done is not None:
        if done["key"] != key:
            raise UserError(f"{task.folder}: holds a different discovery; choose another --out, or remove it")
        if all((task.folder / name).exists() for name in (WEIGHTS, PLAN)):
            return done
    model = context.new_model(seed_of("init", task.seed))
    with one_thread():
        search = GatedTraining(model, context.data, task.config.recipe, task.pressure, ("dense", task.seed))
        last = time.monotonic()
        for saved in train_epochs(search, _load_progress(task.folder, key)):
            if watch is not None:
                watch(task, search.history[-1])
            if time.monotonic() - last > SAVE_INTERVAL:
                _keep_progress(task.folder, key, saved)
                last = time.monotonic()
        return _finish(task, context, search, key)


def _finish(task: DiscoveryTask, context: RunContext, search: GatedTraining, key: str) -> Record:
    if search.diverged:
        raise RunFailed(f"{task.name}: {search.message}")
    discovery = discovery_of(search)
    save(discovery.model, search.graph, context.data.train.inputs, task.folder)
    record = record_of(discovery, context, task.config.recipe)
    record |= {"key": key, "nu": task.pressure.nu, "seed": task.seed, "pressure": task.pressure.model_dump()}
    record["layers"] = [group.name for group in search.full_graph.groups]  # from input to output, for pictures
    write_checked(task.folder / RECORD, record)
    for leftover in task.folder.glob(f"{PROGRESS}.*"):
        leftover.unlink()
    return record


def record_of(discovery: Discovery, context: RunContext, recipe: Recipe) -> Record:
    """Return the record of a discovery as plain data; errors are those of the saved network."""
    model = discovery.model
    loss_fn, error = recipe.loss_fn, recipe.error_function
    return {
        "val_error": mean_error(model, context.data.val, loss_fn, error),
        "test_error": mean_error(model, context.data.test, loss_fn, error),
        "macs": discovery.macs,
        "params": discovery.params,
        "full_macs": discovery.full_macs,
        "full_params": discovery.full_params,
        "widths": {name: list(pair) for name, pair in discovery.widths.items()},
        "blocks": discovery.blocks,
        "message": discovery.message,
        "train_seconds": discovery.seconds,
        "inference_seconds": inference_seconds(model, context.data.test.inputs),
        "numerics": str(context.spec.numerics),
        "history": discovery.history,
    }


def inference_seconds(model: nn.Module, inputs: Inputs) -> float:
    """Return the seconds for a thousand inputs in eval mode, in batches of 256: median of 20 passes after a warm-up."""
    batch = inputs[:TIMING_BATCH]
    training = model.training
    model.eval()
    found = []
    with one_thread(), torch.no_grad():
        for _ in range(TIMING_PASSES + 1):
            started = time.perf_counter()
            call(model, batch)
            synchronize(batch.device)
            found.append(time.perf_counter() - started)
    model.train(training)
    return 1000 * sorted(found[1:])[TIMING_PASSES // 2] / len(batch)


def _describe(task: DiscoveryTask, context: RunContext) -> dict[str, Any]:
    return {
        **context.identity,
        "schema": SCHEMA,
        "stage": "discover",
        "recipe": task.config.recipe.key_fields(),
        "pressure": task.pressure.model_dump(),
        "estimator": source_id(ESTIMATORS, task.pressure.estimator, "estimator"),
        "seed": task.seed,
        "numerics": context.spec.numerics.id,
    }


def _read(path: Path) -> Record | None:
    try:
        return read_checked(path)
    except DamagedFile:
        return None  # it is written again


def _keep_progress(folder: Path, key: str, saved: DiscoveryCheckpoint) -> None:
    """Write the tensors first, under a new name, so that the progress file always refers to existing tensors."""
    from safetensors.torch import save as packed

    folder.mkdir(parents=True, exist_ok=True)
    tensors = folder / f"{PROGRESS}.{saved.epoch}.safetensors"
    content = packed({name: each.contiguous() for name, each in saved.tensors.items()})
    write_atomic(tensors, content)
    note = {"key": key, "epoch": saved.epoch, "facts": saved.facts, "sha256": hashlib.sha256(content).hexdigest()}
    write_checked(folder / f"{PROGRESS}.json", note)
    for old in folder.glob(f"{PROGRESS}.*.safetensors"):
        if old != tensors:
            old.unlink()


def _load_progress(folder: Path, key: str) -> DiscoveryCheckpoint | None:
    from safetensors.torch import load

    note = _read(folder / f"{PROGRESS}.json")
    if note is None or note["key"] != key:
        return None
    try:
        content = (folder / f"{PROGRESS}.{note['epoch']}.safetensors").read_bytes()
    except OSError:
        return None  # missing: start again
    if hashlib.sha256(content).hexdigest() != note.get("sha256"):
        return None  # truncated or altered
    return DiscoveryCheckpoint(note["epoch"], load(content), note["facts"])
