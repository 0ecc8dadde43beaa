"""Contender: this package, as a whole sweep or as the work of its workers, one single-threaded process per core."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F

from regimes.config.recipe import Recipe
from regimes.experiment.context import in_layout
from regimes.experiment.environment import default_workers
from regimes.experiment.numerics import use_deterministic_kernels
from regimes.landscape.cka import cka
from regimes.landscape.linear_path import linear_connectivity
from regimes.research.speed.harness import Case
from regimes.research.speed.workloads import MODELS, data_of, fixed_subset, load_trained, mean, new_network
from regimes.training.fleet import Lane
from regimes.training.train import train_fleet

Ready = Callable[[], None]


def sweep(case: Case) -> dict[str, Any]:
    """Run the same cells with `regimes.run`, with several dense seeds, since a sweep has many cells to distribute."""
    import regimes
    from regimes.config.sweep_file import resolve_sweep

    name, options = MODELS[case["model"]]
    seeds = case["dense_seeds"]
    asked = resolve_sweep(
        {
            "name": "bench",
            "dense_seeds": seeds,
            "retrain_seeds": case["copies"],
            "data": {"name": "digits"},
            "model": {"name": name, **options},
            "recipe": {"epochs": case["epochs"], "schedule": "cosine"},
            "temperature": {"batch_size": [case["batch"]]},
            "load": {"density": list(case["densities"])},
            "measure": {
                "metrics": ["error", "lmc", "cka", "hessian_trace", "hessian_top"],
                "hessian": {"images": case["hessian_images"], "probes": case["probes"]},
            },
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        regimes.run(asked, folder, device=case.get("device", "cpu"))
        seconds = time.perf_counter() - started
        record = regimes.open(folder)
    units = len(case["densities"]) * seeds
    errors, lines = float(record["test_error"].mean()), float(record["lmc"].mean())
    return {"seconds": seconds, "units": units, "test_error": errors, "lmc": lines}


def training(case: Case) -> dict[str, Any]:
    """Train one network, or a fleet of ``lanes``, per core; units are epochs of one network over the case's images."""
    return in_workers(_train_one, case, [case["workers"] * case["round"] + each for each in range(case["workers"])])


def pair(case: Case) -> dict[str, Any]:
    """Measure LMC and CKA, one pair per core."""
    return in_workers(_measure_one, case, range(case["workers"]))


def _train_one(case: Case, seed: int, ready: Ready) -> dict[str, Any]:
    device = torch.device(case.get("device", "cpu"))
    data = data_of(case).to(device, torch.float32, torch.channels_last)
    augment = "crop-flip" if case["augment"] else "none"
    recipe = Recipe(epochs=case["epochs"], batch_size=case["batch"], schedule="cosine", augment=augment, last=1)
    precision, engine = case.get("precision", "float32"), case.get("engine", "eager")
    count = case.get("lanes", 1)
    models = [in_layout(new_network(case, seed * count + each), torch.channels_last) for each in range(count)]
    lanes = [Lane(model, recipe, ("bench", seed * count + each)) for each, model in enumerate(models)]
    ready()
    ends = dict(train_fleet(lanes, data, [case["epochs"]], engine, evaluate_all=False, precision=precision))
    return {
        "units": count * case["epochs"],
        "test_error": mean([each.history[-1]["test_error"] for each in ends.values()]),
    }


def _measure_one(case: Case, number: int, ready: Ready) -> dict[str, Any]:
    device = torch.device(case.get("device", "cpu"))
    data = data_of(case).to(device, torch.float32, torch.channels_last)
    a, b = (in_layout(load_trained(case, seed), torch.channels_last) for seed in (0, 1))
    linear_connectivity(a, b, fixed_subset(data.train, 256))
    ready()
    lmc = linear_connectivity(a, b, data.train, loss_fn=F.cross_entropy, statistics=case.get("statistics", "all"))
    return {"units": 1, "lmc": lmc.value, "cka": cka(a, b, data.train.inputs).value}


def workers_of(device: str) -> int:
    """Return the number of workers that the package would use."""
    return default_workers([device])


def in_workers(
    work: Callable[[Case, int, Ready], dict[str, Any]], case: Case, numbers: Sequence[int]
) -> dict[str, Any]:
    """Run pieces of work in parallel processes and time them from their common start to the last end.

    Each piece of work calls ``ready()`` after its preparations and continues when all have done so.
    """
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(len(numbers))
        with ProcessPoolExecutor(
            len(numbers), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            waiting = [pool.submit(_together, work, case, number, barrier) for number in numbers]
            found = [each.result() for each in waiting]
    seconds = max(each["end"] for each in found) - min(each["start"] for each in found)
    checks = {name: mean([each[name] for each in found]) for name in found[0] if name not in ("start", "end", "units")}
    return {"seconds": seconds, "units": sum(each["units"] for each in found), **checks}


def _together(work: Callable[..., dict[str, Any]], case: Case, number: int, barrier: Any) -> dict[str, Any]:
    use_deterministic_kernels(case.get("device", "cpu"))
    start = 0.0

    def ready() -> None:
        nonlocal start
        barrier.wait()
        start = time.perf_counter()  # one clock for all processes

    try:
        found = work(case, number, ready)
    except BaseException:
        barrier.abort()  # otherwise the others would wait forever
        raise
    return {**found, "start": start, "end": time.perf_counter()}
