"""``regimes bench hessian``: trace and top eigenvalue to a given accuracy, against PyHessian and curvlinops."""

from __future__ import annotations

import tempfile
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.bench.arms import Arm, Case, Say, run_arms
from regimes.bench.ours import Ready, in_workers, workers_of
from regimes.bench.subject import data_of, standing, trained
from regimes.bench.table import EVERY_CORE, Bench, Sheet, Table
from regimes.landscape.hessian import hessian_top, hessian_trace, hutchinson
from regimes.landscape.operator import HessianOperator
from regimes.landscape.pyhessian import reference_top, reference_trace

HERE = "regimes.bench.hessian"
RELATIVE = 0.03  # standard error of the trace that every arm has to reach
EXACT = 1e-3  # relative error of the top eigenvalue likewise
CASES: dict[str, dict[str, Any]] = {
    "MLP 64-128-128-10 on digits, 1151 images": {"model": "mlp", "epochs": 20, "batch": 64, "hessian_images": 1151},
    "PreResNet-20 on 32x32, 64 images": {"model": "preresnet20", "epochs": 3, "batch": 128, "hessian_images": 64},
}


def bench(device: str, rounds: int, images: str, say: Say) -> Bench:
    """Compare and return the tables."""
    sheets: list[Sheet] = []
    for title, base in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            case = {**base, "folder": folder, "images": images, "device": device, "augment": False, "seeds": [0]}
            case["workers"] = workers_of(device)
            case["count"] = 2560 if base["model"] == "preresnet20" else 0
            say(f"{title}: training a network")
            run_arms([Arm("network", "regimes.bench.subject:keep_trained", threads=0)], case, 1, say)
            (scout,) = run_arms([Arm("what accuracy takes", f"{HERE}:scout")], case, 1, say)
            case |= scout.checks[0]
            traces = [
                Arm("regimes (XTrace), one per core", f"{HERE}:traces"),
                Arm("regimes, one core", f"{HERE}:trace"),
                Arm("regimes, one core, Hutchinson", f"{HERE}:trace", options={"method": "hutchinson"}),
                Arm("regimes, one core, eight vectors a pass", f"{HERE}:trace", options={"together": 8}),
                Arm("PyHessian, probes to equal error", f"{HERE}:trace_pyhessian"),
                Arm("PyHessian, torch's threads", f"{HERE}:trace_pyhessian", threads=0),
                Arm("curvlinops, XTrace with as many products", f"{HERE}:trace_curvlinops"),
            ]
            timings = run_arms(traces, case, rounds, say)
            noted = [
                f"to a standard error of {RELATIVE:.0%}: PyHessian needs {case['probes']} probes for that",
                EVERY_CORE,
            ]
            sheets.append(
                Table(f"Hessian trace: {title}", "traces/hour", 3600.0, timings, ["trace", "products"], noted).sheet()
            )
            values = [
                Arm("regimes (Lanczos), one per core", f"{HERE}:tops"),
                Arm("regimes, one core", f"{HERE}:top"),
                Arm("PyHessian, power iteration", f"{HERE}:top_pyhessian"),
                Arm("PyHessian, torch's threads", f"{HERE}:top_pyhessian", threads=0),
                Arm("curvlinops, Lanczos of SciPy", f"{HERE}:top_curvlinops"),
            ]
            timings = run_arms(values, case, rounds, say)
            noted = [
                f"to {EXACT:g} of {case['top']:.6g}; PyHessian's own tolerance has to be {case['tolerance']:g}",
                EVERY_CORE,
            ]
            sheets.append(
                Table(f"Top eigenvalue: {title}", "values/hour", 3600.0, timings, ["top_error"], noted).sheet()
            )
    return Bench("hessian", sheets)


def _subject(case: Case) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    split = standing(data_of(case).train, case["hessian_images"])
    device = case.get("device", "cpu")
    model = trained(case).eval()
    few = HessianOperator(model, F.cross_entropy, (split.inputs[:8].to(device), split.targets[:8].to(device)))
    few.times(torch.linalg.qr(few.normal(torch.Generator())[:, None]).Q)  # libraries set themselves up on first use
    return model, (split.inputs.to(device), split.targets.to(device))


def scout(case: Case) -> dict[str, Any]:
    """How many Hutchinson probes and which PyHessian tolerance the accuracy takes, and the exact top eigenvalue."""
    model, data = _subject(case)
    hessian = HessianOperator(model, F.cross_entropy, data)
    some = hutchinson(hessian, torch.Generator().manual_seed(99), 30, None, 30)
    probes = max(2, round(30 * (some.stderr / (RELATIVE * abs(some.value))) ** 2))
    top = hessian_top(model, F.cross_entropy, data, tolerance=1e-5, max_steps=200).value
    tolerance = EXACT
    while abs(_power(model, data, tolerance) - top) > EXACT * top and tolerance > 1e-7:
        tolerance /= 4
    return {"seconds": 1.0, "units": 1, "probes": probes, "top": top, "tolerance": tolerance}


def _power(model: nn.Module, data: tuple[Tensor, Tensor], tolerance: float) -> float:
    """PyHessian's eigenvalue at a tolerance of its own."""
    return reference_top(model, F.cross_entropy, data, None, tolerance, 1000, torch.Generator().manual_seed(0)).value


def trace(case: Case, ready: Ready = lambda: None) -> dict[str, Any]:
    """Ours."""
    model, data = _subject(case)
    generator = torch.Generator().manual_seed(case["round"])
    ready()
    started = time.perf_counter()
    if case.get("together"):
        from regimes.landscape.xtrace import xtrace

        found = xtrace(HessianOperator(model, F.cross_entropy, data, together=8), generator, RELATIVE, 4000)
    else:
        method = case.get("method", "auto")
        found = hessian_trace(model, F.cross_entropy, data, None, RELATIVE, generator, method=method, max_probes=4000)
    return {"seconds": time.perf_counter() - started, "units": 1, "trace": found.value, "products": found.samples}


def traces(case: Case) -> dict[str, Any]:
    """Ours, on every core."""
    return in_workers(_trace_of, case, [case["workers"] * case["round"] + each for each in range(case["workers"])])


def tops(case: Case) -> dict[str, Any]:
    """Ours, on every core."""
    return in_workers(_top_of, case, [case["workers"] * case["round"] + each for each in range(case["workers"])])


def _trace_of(case: Case, seed: int, ready: Ready) -> dict[str, Any]:
    return trace({**case, "round": seed}, ready)


def _top_of(case: Case, seed: int, ready: Ready) -> dict[str, Any]:
    return top({**case, "round": seed}, ready)


def trace_pyhessian(case: Case) -> dict[str, Any]:
    """PyHessian with the number of probes that the accuracy takes."""
    model, data = _subject(case)
    generator = torch.Generator().manual_seed(case["round"])
    started = time.perf_counter()
    found = reference_trace(model, F.cross_entropy, data, None, case["probes"], generator)
    return {"seconds": time.perf_counter() - started, "units": 1, "trace": found.value, "products": found.samples}


def trace_curvlinops(case: Case) -> dict[str, Any]:
    """curvlinops' XTrace; it takes a number of products, not an accuracy, so it is told how many ours took."""
    from curvlinops import HessianLinearOperator, xtrace

    model, data = _subject(case)
    products = trace({**case, "together": None})["products"]
    torch.manual_seed(case["round"])
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = HessianLinearOperator(
            model,
            nn.CrossEntropyLoss(),
            [each for each in model.parameters() if each.requires_grad],
            [data],
            check_deterministic=False,
        )
        value = float(xtrace(operator, products))
    return {"seconds": time.perf_counter() - started, "units": 1, "trace": value, "products": products}


def top(case: Case, ready: Ready = lambda: None) -> dict[str, Any]:
    """Ours."""
    model, data = _subject(case)
    generator = torch.Generator().manual_seed(case["round"])
    ready()
    started = time.perf_counter()
    found = hessian_top(model, F.cross_entropy, data, None, generator, tolerance=EXACT, max_steps=200)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "units": 1, "top_error": abs(found.value / case["top"] - 1), "products": found.samples}


def top_pyhessian(case: Case) -> dict[str, Any]:
    """PyHessian's power iteration with the tolerance that the accuracy takes."""
    model, data = _subject(case)
    generator = torch.Generator().manual_seed(case["round"])
    started = time.perf_counter()
    found = reference_top(model, F.cross_entropy, data, None, case["tolerance"], 1000, generator)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "units": 1, "top_error": abs(found.value / case["top"] - 1)}


def top_curvlinops(case: Case) -> dict[str, Any]:
    """curvlinops' operator under SciPy's Lanczos."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    model, data = _subject(case)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = HessianLinearOperator(
            model,
            nn.CrossEntropyLoss(),
            [each for each in model.parameters() if each.requires_grad],
            [data],
            check_deterministic=False,
        )
        values = eigsh(operator.to_scipy(), k=1, which="LA", tol=EXACT, return_eigenvectors=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "units": 1, "top_error": abs(float(values[-1]) / case["top"] - 1)}
