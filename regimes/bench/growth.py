"""``regimes bench growth``: how time and memory grow with cells, model, data, density and workers, with fits."""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regimes.bench.arms import Arm, Case, Say, run_arms
from regimes.bench.limits import step
from regimes.bench.table import Bench, Sheet

HERE = "regimes.bench.growth"
IMAGENET = 1_281_167  # training images


def bench(device: str, rounds: int, images: str, say: Say) -> Bench:
    """Measure and return the sheets; ``images`` is not used."""
    case = {"device": device}
    one: dict[str, list[dict[str, Any]]] = {
        "cells": [{"cells": count} for count in (100, 1_000, 10_000)],
        "model": [{"width": width} for width in (4, 8, 16, 32, 64)],
        "data": [{"count": count} for count in (1_024, 4_096, 16_384)],
        "density": [{"density": density} for density in (0.02, 0.1, 0.5, 1.0)],
        "workers": [{"workers": count} for count in (1, 2)],
    }
    sheets = []
    for name, points in one.items():
        found = []
        for point in points:
            (timing,) = run_arms(
                [Arm(f"{name} {point}", f"{HERE}:{name}", lean=True, options=point)], case, rounds, say
            )
            found.append({**point, "seconds": 1 / timing.rate, **timing.checks[-1]})
        sheets.append(_sheet(name, found))
    (limit,) = run_arms([Arm("ResNet-50", f"{HERE}:imagenet")], case, 1, say)
    by_name = {sheet.facts["name"]: sheet.facts for sheet in sheets}
    return Bench("growth", [*sheets, _estimates(by_name, limit.checks[0])])


TITLES = {
    "cells": ("Cells: laying out, surveying and assembling a sweep of 3 copies and 5 metrics", "cells"),
    "model": ("Model: a training step of PreResNet-14, 64 images of 8x8", "width"),
    "data": ("Data: an epoch of PreResNet-14 width 8, batch 64", "count"),
    "density": ("Density: a training step under a mask", "density"),
    "workers": ("Workers: a sweep of 24 retrained copies of PreResNet-14 width 8", "workers"),
}


def _sheet(name: str, found: Sequence[dict[str, Any]]) -> Sheet:
    title, axis = TITLES[name]
    more = [key for key in found[0] if key not in (axis, "seconds")]
    rows = [[axis, "seconds", *more]]
    rows += [[f"{each[axis]:g}", f"{each['seconds']:.4g}", *(f"{each[key]:.4g}" for key in more)] for each in found]
    slope = _slope([each[axis] for each in found], [each["seconds"] for each in found])
    notes = [f"seconds grow as {axis}^{slope:.2f}"]
    return Sheet(title, rows, notes, {"name": name, "points": list(found), "slope": slope})


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of a power law, by least squares in logarithms."""
    u, v = [math.log(each) for each in x], [math.log(each) for each in y]
    a, b = sum(u) / len(u), sum(v) / len(v)
    return sum((p - a) * (q - b) for p, q in zip(u, v, strict=True)) / sum((p - a) ** 2 for p in u)


def _estimates(sheets: dict[str, Any], limit: dict[str, float]) -> Sheet:
    """What the fits say of two sizes that nobody waits for here."""
    cells, slope = sheets["cells"]["points"], sheets["cells"]["slope"]
    grown = cells[-1]["seconds"] * (1e5 / cells[-1]["cells"]) ** slope
    memory = cells[-1]["peak_MB"] * 10
    days = limit["step_seconds"] / limit["batch"] * IMAGENET * 90 / 86_400
    rows = [
        ["", "estimate", "rests on"],
        ["10^5 cells: planning and assembling", f"{grown / 60:.1f} min", f"seconds ~ cells^{slope:.2f}"],
        ["10^5 cells: memory of the command", f"{memory / 1e3:.1f} GB", "peak at 10^4 cells, times ten"],
        ["10^5 cells: records", f"{cells[-1]['record_MB'] * 10 / 1e3:.1f} GB", "bytes at 10^4 cells, times ten"],
        [
            "ResNet-50, ImageNet, 90 epochs, one core",
            f"{days:,.0f} days",
            f"a step of {limit['batch']:.0f} images here",
        ],
        [
            "ResNet-50: memory of a step of 256 images",
            f"{limit['bytes_per_network'] / 1e9:.0f} GB",
            "tensors that autograd keeps, doubled",
        ],
    ]
    notes = [
        "ImageNet does not fit into memory: its images would have to be streamed, which this engine does not do yet"
    ]
    return Sheet("Estimates, not measurements", rows, notes, {"name": "estimates", **limit})


# -- what is measured ------------------------------------------------------------------------------------------------


def cells(case: Case) -> dict[str, Any]:
    """Lay a sweep out, write a record for every stage, survey them and assemble the dataset."""
    import regimes
    from regimes.flow.head import begin
    from regimes.flow.plan import survey
    from regimes.flow.prepare import prepare
    from regimes.spec.check import resolve

    count = case["cells"]
    asked = resolve(
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
        prepared = begin(prepare(asked, folder, engine="eager"), adopt=False, mixed=False)
        laid_out = time.perf_counter()
        for stage in prepared.stages:
            record = {"kind": stage.kind, "status": "ok", "at": dict(stage.at), "values": {}, "seconds": 0.0}
            prepared.store.write(stage.key, {**record, "numerics": "x", "description": stage.describe()})
        written = time.perf_counter()
        survey(prepared.stages, prepared.store)
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
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def model(case: Case) -> dict[str, Any]:
    """A training step by width, and memory: as the plan says it, and as it was."""
    from regimes.flow.engine import Choice, seconds_per_image
    from regimes.flow.memory import PROCESS, bytes_per_network

    lab, recipe = _lab(case["width"], case["device"])
    planned = PROCESS + bytes_per_network(lab, recipe)
    seconds = seconds_per_image(lab, Choice("eager", 1), recipe) * recipe.batch_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1e3
    parameters = sum(each.numel() for each in lab.new_model(0).parameters())
    flops, _ = step(lab.new_model(0), lab.data.train.inputs[:64])
    return {
        "seconds": seconds,
        "units": 1,
        "parameters": parameters,
        "GFLOP_per_s": flops / seconds / 1e9,
        "planned_MB": planned / 1e6,
        "peak_MB": peak / 1e6,
    }


def data(case: Case) -> dict[str, Any]:
    """An epoch by the number of images."""
    return _epoch(case["count"], None, case["device"])


def density(case: Case) -> dict[str, Any]:
    """A step under a mask: masks alone make nothing faster, nor slower."""
    found = _epoch(1_024, case["density"], case["device"])
    return {**found, "units": 16}


def _epoch(count: int, density: float | None, device: str) -> dict[str, Any]:
    from regimes.bench.subject import fresh
    from regimes.data.synthetic import synthetic
    from regimes.pruners.prune import prune
    from regimes.spec.recipe import Recipe
    from regimes.training.eager import Eager
    from regimes.training.lane import Lane

    split = synthetic(shape=[1, 8, 8], classes=10, train=count * 10 // 9 + 10, test=40)
    split = split.to(torch.device(device), torch.float32, torch.channels_last)
    network = fresh({"model": "preresnet14-w8", "device": device}, 0)
    mask = None if density is None else prune(network, density)
    engine = Eager([Lane(network, Recipe(epochs=2, batch_size=64, augment="none"), ("growth",), mask)], split)
    engine.epoch(0)
    started = time.perf_counter()
    engine.epoch(1)
    return {"seconds": time.perf_counter() - started, "units": 1}


def workers(case: Case) -> dict[str, Any]:
    """A whole run by the number of workers."""
    import regimes
    from regimes.spec.check import resolve

    asked = resolve(
        {
            "name": "growth",
            "dense_seeds": 2,
            "retrain_seeds": 3,
            "data": {"name": "digits"},
            "model": {"name": "preresnet", "depth": 14, "width": 8},
            "recipe": {"epochs": 5},
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
    """A training step of torchvision's ResNet-50 on 224x224, and its memory at batch 256."""
    import torch.nn.functional as F

    from regimes.data.vision import torchvision

    network = torchvision().models.resnet50(weights=None).to(memory_format=torch.channels_last).train()
    batch = 8
    inputs = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    targets, kept = torch.zeros(batch, dtype=torch.int64), {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    found = []
    for _ in range(3):
        kept.clear()
        started = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = F.cross_entropy(network(inputs), targets)
        loss.backward()
        found.append(time.perf_counter() - started)
    weights = sum(each.nbytes for each in network.parameters())
    return {
        "seconds": min(found),
        "units": 1,
        "step_seconds": min(found),
        "batch": batch,
        "bytes_per_network": 6 * weights + 2 * sum(kept.values()) * 256 / batch,
    }


def _lab(width: int, device: str) -> Any:
    from regimes.flow.lab import Lab, LabSpec, numerics_of
    from regimes.spec.recipe import Recipe
    from regimes.spec.sweep import Named

    numerics = numerics_of(device, "eager", "eager")
    model = Named(name="preresnet", depth=14, width=width)  # type: ignore[call-arg]
    return Lab(LabSpec(Named(name="digits"), model, device, numerics, "")), Recipe(batch_size=64, augment="none")
