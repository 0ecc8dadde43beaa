"""Measurements of benchmark ``growth``: one point each, in a separate process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from regimes.experiment.context import in_layout
from regimes.experiment.memory import PROCESS_BYTES, bytes_per_network, peak_bytes
from regimes.research.speed.harness import Case
from regimes.research.speed.roofline import step
from regimes.research.speed.workloads import new_network

if TYPE_CHECKING:
    from regimes.experiment.run import Prepared
    from regimes.pruners.mask import Mask


def cells(case: Case) -> dict[str, Any]:
    """Expand a sweep, write a record for every stage, scan the store and assemble the dataset."""
    import regimes
    from regimes.config.sweep_file import resolve_sweep
    from regimes.experiment.run import prepare
    from regimes.experiment.run_metadata import start_run
    from regimes.experiment.schedule import scan_store

    count = case["cells"]
    base = peak_bytes()
    asked = resolve_sweep(
        {
            "name": "growth",
            "dense_seeds": max(1, count // 100),
            "retrain_seeds": 3,
            "data": {"name": "synthetic"},
            "model": {"name": "mlp", "widths": [8]},
            "recipe": {"augment": "none"},
            "temperature": {"learning_rate": [0.01 * (1 + each) for each in range(10)]},
            "load": {"density": [0.05 * (1 + each) for each in range(10)]},
            "measure": {"metrics": ["error", "lmc", "cka", "hessian_trace", "hessian_top"]},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        prepared = start_run(prepare(asked, folder, engine="eager"), adopt=False, mixed=False)
        laid_out = time.perf_counter()
        _write_all(prepared)
        written = time.perf_counter()
        scan_store(prepared.stages, prepared.store)
        surveyed = time.perf_counter()
        regimes.open(folder)
        assembled = time.perf_counter()
        size = sum(file.stat().st_size for file in Path(folder, "records").rglob("*.json"))
    return {
        "seconds": assembled - written + laid_out - started,
        "units": 1,
        "stages": len(prepared.stages),
        "lay_out_s": laid_out - started,
        "write_s": written - laid_out,
        "survey_s": surveyed - written,
        "assemble_s": assembled - surveyed,
        "record_MB": size / 1e6,
        "memory_MB": (peak_bytes() - base) / 1e6,
    }


def _write_all(prepared: Prepared) -> None:
    """Write a minimal record for every stage, with weights of a small network where a stage has them."""
    weights = prepared.context.new_model(seed=0).state_dict()
    for stage in prepared.stages:
        record = {"kind": stage.kind, "status": "ok", "at": dict(stage.coords), "values": {}, "seconds": 0.0}
        record |= {"numerics": "x", "description": stage.describe()}
        prepared.store.write(stage.key, record, weights if stage.kind in ("train", "retrain") else None)


def model(case: Case) -> dict[str, Any]:
    """Measure a training step by width, with planned and measured memory."""
    from regimes.experiment.engine_selection import EngineChoice, seconds_per_image

    context, recipe = _context(case["width"], case["device"])
    planned = PROCESS_BYTES + bytes_per_network(context, recipe)
    seconds = seconds_per_image(context, EngineChoice("eager", 1), recipe) * recipe.batch_size
    peak = peak_bytes() / 1e6
    parameters = sum(each.numel() for each in context.new_model(0).parameters())
    flops, _ = step(context.new_model(0), context.data.train.inputs[:64])
    return {
        "seconds": seconds,
        "units": 1,
        "parameters": parameters,
        "GFLOP_per_s": flops / seconds / 1e9,
        "planned_MB": planned / 1e6,
        "peak_MB": peak,
    }


def data(case: Case) -> dict[str, Any]:
    """Measure an epoch by the number of images."""
    network = new_network({"model": "preresnet14-w8", "device": case["device"]}, 0)
    return _epoch(case["count"], network, None, case["device"])


def density(case: Case) -> dict[str, Any]:
    """Measure a step with a mask; a mask alone does not change the speed."""
    from regimes.pruners.prune import prune

    network = new_network({"model": "preresnet14-w8", "device": case["device"]}, 0)
    found = _epoch(1_024, network, prune(network, case["density"]), case["device"])
    return {**found, "units": 16}


def channels(case: Case) -> dict[str, Any]:
    """Measure a step of a network with whole channels removed."""
    from regimes.pruners.channels import shrink
    from regimes.pruners.prune import prunable

    context, _ = _context(32, case["device"])
    network = context.new_model(0)
    inputs = context.data.train.inputs[:2]
    kept = 1.0
    if case["density"] < 1:
        network, kept = shrink(network, case["density"], inputs, "channels-magnitude", "uniform", 0)
    weights = sum(each.numel() for each in prunable(network).values())
    return {**_epoch(1_024, network, None, case["device"]), "units": 16, "kept": kept, "weights": weights}


def _epoch(count: int, network: nn.Module, mask: Mask | None, device: str) -> dict[str, Any]:
    from regimes.config.recipe import Recipe
    from regimes.data.synthetic import synthetic
    from regimes.training.eager_engine import EagerEngine
    from regimes.training.fleet import Lane

    split = synthetic(shape=[1, 8, 8], classes=10, train=count * 10 // 9 + 10, test=40)
    split = split.to(torch.device(device), torch.float32, torch.channels_last)
    network = in_layout(network, torch.channels_last)
    engine = EagerEngine([Lane(network, Recipe(epochs=2, batch_size=64, augment="none"), ("growth",), mask)], split)
    engine.epoch(0)
    started = time.perf_counter()
    engine.epoch(1)
    return {"seconds": time.perf_counter() - started, "units": 1}


def workers(case: Case) -> dict[str, Any]:
    """Measure a whole run by the number of workers."""
    import regimes
    from regimes.config.sweep_file import resolve_sweep

    asked = resolve_sweep(
        {
            "name": "growth",
            "dense_seeds": 2,
            "retrain_seeds": 3,
            "data": {"name": "digits"},
            "model": {"name": "preresnet", "depth": 14, "width": 8},
            "recipe": {"epochs": 20},
            "temperature": {"batch_size": [64]},
            "load": {"density": [0.05, 0.1, 0.2, 0.4]},
            "measure": {"metrics": ["error", "lmc", "cka"]},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        regimes.run(asked, folder, workers=case["workers"], device=case["device"])
        return {"seconds": time.perf_counter() - started, "units": 1}


def imagenet(case: Case) -> dict[str, Any]:
    """Measure a training step of torchvision's ResNet-50 on 224x224, and estimate its memory at batch size 256."""
    import torch.nn.functional as F

    from regimes.experiment.memory import bytes_in_training
    from regimes.torchvision_import import torchvision

    network = torchvision().models.resnet50(weights=None).to(memory_format=torch.channels_last).train()
    inputs = torch.randn(8, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(len(inputs), dtype=torch.int64)
    found = []
    for _ in range(3):
        started = time.perf_counter()
        F.cross_entropy(network(inputs), targets).backward()
        found.append(time.perf_counter() - started)
    memory = bytes_in_training(network, inputs, targets, 256)
    seconds = min(found)
    return {"seconds": seconds, "units": 1, "step_seconds": seconds, "batch": len(inputs), "bytes_per_network": memory}


def _context(width: int, device: str) -> Any:
    from regimes.config.recipe import Recipe
    from regimes.config.sweep import Named
    from regimes.experiment.context import ContextSpec, RunContext

    model = Named(name="preresnet", depth=14, width=width)  # type: ignore[call-arg]
    context = RunContext(ContextSpec.eager(Named(name="digits"), model, device))
    return context, Recipe(batch_size=64, augment="none")
