"""Cost estimate of a plan: time, disk space and memory, measured or calibrated on this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from regimes.config.recipe import Recipe
from regimes.config.sweep import Sweep
from regimes.data.inputs import call
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.engine_selection import EngineChoice, recipes_of, seconds_per_image
from regimes.experiment.memory import PROCESS_BYTES, bytes_in_measuring, bytes_per_network, synchronize
from regimes.experiment.run import Prepared
from regimes.experiment.stages.stage import Stage, size_of
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.landscape import METRICS
from regimes.landscape.error import inputs_per_pass
from regimes.landscape.metric import Metric
from regimes.models.eval_mode import eval_mode
from regimes.registry import lookup
from regimes.training.update_rules import buffers_per_weight

RECORD_BYTES = 3_000  # a typical record on disk
RateKey = tuple[Any, ...]  # (kind of stage,) or (kind, width) if width varies; seconds per work depend on it


@dataclass(frozen=True)
class Cost:
    """Expected cost of stages.

    Attributes:
        core_seconds: seconds on one core of this machine.
        disk_bytes: size of the records and weights to be written.
        memory_bytes: peak memory of one worker.
        source: "measured in this run" or "calibrated on this machine".
    """

    core_seconds: float
    disk_bytes: int
    memory_bytes: int
    source: str

    def wall_seconds(self, workers: int) -> float:
        """Return the expected wall time with a number of workers, including three seconds of start-up."""
        return self.core_seconds / max(1, workers) + 3.0


def estimate(prepared: Prepared, workers: int) -> Cost:
    """Estimate the cost of the pending stages.

    Seconds per unit of work come from this run's records if it has some of that kind of stage, otherwise from timing
    a few training steps and forward passes of the model.
    """
    todo, context = prepared.progress.todo, prepared.context
    measured = _rates(prepared.stages, prepared.store)
    rates = dict(measured)
    for size in prepared.sweep.sizes():
        if any(_rate_key(stage) not in measured for stage in todo if size_of(stage.coords) == size):
            found = _calibrated(context.sized(size), prepared.engines, prepared.sweep.retrain)
            rates = {(kind, *size.values()): rate for kind, rate in found.items()} | rates
    seconds = sum(work * rates[key] for key, work in _work(todo))
    source = "measured in this run" if rates == measured else "calibrated on this machine"
    return Cost(seconds, disk(todo, context, prepared.sweep.recipe), memory(prepared), source)


def memory(prepared: Prepared) -> int:
    """Return the peak bytes of one worker: process, data, and a fleet in training or a network in measurement."""
    context, sweep = prepared.context, prepared.sweep
    splits = (context.data.train, context.data.val, context.data.test)
    data = 2 * sum(split.inputs.nbytes + split.targets.nbytes for split in splits)  # as loaded, and as trained on
    fleets = [
        bytes_per_network(context.sized(size), max(each, key=lambda recipe: recipe.batch_size)) * prepared.lanes[kind]
        for kind, each in recipes_of(sweep).items()
        for size in sweep.sizes()
    ]
    return PROCESS_BYTES + data + max([*fleets, *(_measuring(sweep, context.sized(size)) for size in sweep.sizes())])


def _measuring(sweep: Sweep, context: RunContext) -> int:
    """Return the bytes of the largest autograd graph of a metric."""
    images, few = len(context.data.train.targets), 16
    graphs = []
    for name in sweep.measure.metrics:
        metric: Metric = lookup(METRICS, name, "metric")
        if metric.graph is not None:
            graphs.append(metric.graph(metric.options(**sweep.measure.options(metric.table)), images))
    if not graphs:
        return 0
    inputs, targets = context.data.train.inputs[:few], context.data.train.targets[:few]
    with one_thread():
        model, loss_fn = context.new_model(seed=0), sweep.retrain.loss_fn
        return max(bytes_in_measuring(model, inputs, targets, *each, loss_fn) for each in graphs)


def disk(todo: Iterable[Stage], context: RunContext, recipe: Recipe) -> int:
    """Return the bytes that the stages will write; dense trainings keep the buffers of their recipe's optimiser."""
    total = 0
    for key, count in Counter(map(_rate_key, todo)).items():
        kind, *width = key
        model = context.sized(dict(zip(("width",), width, strict=False))).new_model(seed=0)
        state = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        weights = sum(each.numel() * each.element_size() for each in model.parameters())
        kept = weights * buffers_per_weight(recipe)
        sizes = {"train": state + kept, "prune": weights // 32, "measure": 0}  # others store a network
        total += count * (sizes.get(kind, state) + RECORD_BYTES)
    return total


def _rate_key(stage: Stage) -> RateKey:
    return (stage.kind, *size_of(stage.coords).values())


def _work(stages: Iterable[Stage]) -> list[tuple[RateKey, float]]:
    """Work by kind of stage; snapshots of one training are counted once."""
    longest: dict[str, TrainStage] = {}
    rest = []
    for stage in stages:
        if isinstance(stage, TrainStage):
            known = longest.get(stage.training)
            longest[stage.training] = stage if known is None or stage.epoch > known.epoch else known
        else:
            rest.append((_rate_key(stage), stage.cost))
    return [(_rate_key(stage), stage.cost) for stage in longest.values()] + rest


def _rates(stages: Iterable[Stage], store: Store) -> dict[RateKey, float]:
    """Seconds per unit of work, by kind and width, from finished stages."""
    seconds: dict[RateKey, float] = {}
    done: list[Stage] = []
    for stage in stages:
        try:
            record = store.read(stage.key)
        except DamagedFile:
            continue
        if record is not None and record["status"] == "ok":
            seconds[_rate_key(stage)] = seconds.get(_rate_key(stage), 0.0) + record["seconds"]
            done.append(stage)
    work: dict[RateKey, float] = {}
    for key, amount in _work(done):
        work[key] = work.get(key, 0.0) + amount
    return {key: seconds[key] / work[key] for key in seconds if work[key]}


def _calibrated(context: RunContext, engines: Mapping[str, EngineChoice], recipe: Recipe) -> dict[str, float]:
    """Seconds per forward pass of one image, in training and in measuring, of a new model on one thread."""
    plain = recipe.model_copy(update={"sam_rho": 0.0})
    # A step is about three forward passes.
    rates = {choice: seconds_per_image(context, choice, plain) / 3 for choice in set(engines.values())}
    with one_thread():
        model = context.new_model(seed=0)
        inputs = context.data.train.inputs[: inputs_per_pass(context.data.train.inputs)]
        with eval_mode(model):
            forward = _seconds(lambda: call(model, inputs), 3, context.device) / len(inputs)
    dense, other = rates[engines["train"]], rates[engines["retrain"]]
    trained = {"train": dense, "discover": dense, "retrain": other}
    return {**trained, "given": forward, "prune": forward, "measure": forward}


def _seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Shortest of a few timings, after one warm-up."""
    found = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])
