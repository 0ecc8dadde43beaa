"""Cost of a pruned network: its density, parameters, multiply-accumulates, or measured time of a forward pass."""

from __future__ import annotations

import statistics
import time

import torch

from regimes.config.keys import digest
from regimes.data.inputs import call
from regimes.discovery.count_macs import count_macs
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.memory import synchronize
from regimes.experiment.stages.prune import PruneStage
from regimes.experiment.store import Store

TIMED_INPUTS = 64  # of a forward pass
TIMED_PASSES = 15  # the median counts, after one warm-up
UNITS = {"density": "share of weights kept", "parameters": "parameters", "macs": "MACs", "latency": "s per input"}


def network_cost(stage: PruneStage, against: str, context: RunContext, store: Store) -> float:
    """Return the cost of the network of a pruning stage.

    Args:
        stage: a finished stage.
        against: "density", as asked for; "parameters": those that are not zero; "macs" and "latency" (seconds per
            input in batches of 64, on the context's device, measured once for networks of equal shapes), if channels
            were removed.
        context: data, model and device.
        store: the store of the run folder.
    """
    if against == "density":
        return stage.density
    if against == "parameters" and not stage.load.structured:
        record = store.read(stage.key) or {}
        model = context.new_model(seed=0)
        layers = record["layers"]
        whole = sum(each.numel() for each in model.parameters())
        masked = sum(weight.numel() for name, weight in model.named_parameters() if name in layers)
        return float(whole - masked + sum(layers.values()))
    model = context.model_with(store.weights(stage.key)).eval()
    if against == "parameters":
        return float(sum(each.numel() for each in model.parameters()))
    if against == "macs":
        return float(count_macs(model, context.data.train.inputs))
    name = f"latency-{digest([list(each.shape) for each in model.parameters()])}.json"
    if store.read_json(name) is None:  # once for equal networks, by whichever process is first
        store.write_json(name, {"seconds": latency(model, context)}, keep_existing=True)
    return float((store.read_json(name) or {})["seconds"])


def latency(model: torch.nn.Module, context: RunContext) -> float:
    """Return the median time of a forward pass, in seconds per input."""
    inputs = context.data.train.inputs[:TIMED_INPUTS]
    times = []
    with one_thread(), torch.no_grad():
        for number in range(TIMED_PASSES + 1):
            synchronize(context.device)
            started = time.perf_counter()
            call(model, inputs)
            synchronize(context.device)
            if number:
                times.append(time.perf_counter() - started)
    return statistics.median(times) / len(inputs)
