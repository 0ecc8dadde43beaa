"""Benchmark ``hessian``: trace and top eigenvalue to a given accuracy, compared with PyHessian and curvlinops."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.landscape.hessian import hessian_top, hessian_trace
from regimes.landscape.hessian_operator import HessianOperator
from regimes.landscape.pyhessian import reference_top, reference_trace
from regimes.landscape.trace_estimators import Method, hutchinson
from regimes.plots.text_table import TextTable
from regimes.research.page import Page, Say, benchmark_page
from regimes.research.speed.harness import BenchOptions, Case, Contender, run_contenders
from regimes.research.speed.rate_table import CORES_NOTE, RateTable
from regimes.research.speed.regimes_arm import Ready, in_workers, workers_of
from regimes.research.speed.workloads import by_worth, data_of, fixed_subset, load_trained, mean

Once = Callable[[torch.Generator], dict[str, float]]
MODULE = "regimes.research.speed.hessian"
TRACE_REL_STDERR = 0.03  # relative standard error of the trace that every contender has to reach
TOP_REL_ERROR = 1e-3  # relative error of the top eigenvalue, likewise
CASES: dict[str, dict[str, Any]] = {
    "MLP 64-128-128-10 on digits, 1151 images": {
        "model": "mlp",
        "epochs": 20,
        "batch": 64,
        "hessian_images": 1151,
        "repeats": 10,
    },
    "PreResNet-20 on 32x32, 64 images": {
        "model": "preresnet20",
        "epochs": 10,
        "batch": 128,
        "hessian_images": 64,
        "repeats": 1,
    },
}


def bench(options: BenchOptions, say: Say) -> Page:
    """Run the comparison."""
    tables: list[TextTable] = []
    for title, base in by_worth(CASES, options.device):
        with tempfile.TemporaryDirectory() as folder:
            case = {**base, "folder": folder, "augment": False, "seeds": [0]}
            case |= {"images": options.images, "device": options.device}
            case["workers"] = workers_of(options.device)
            case["count"] = options.count or 2560 if base["model"] == "preresnet20" else 0
            say(f"{title}: training a network")
            run_contenders(
                [Contender("network", "regimes.research.speed.workloads:train_and_save", threads=0)], case, 1, say
            )
            (scout,) = run_contenders([Contender("required accuracy", f"{MODULE}:required_effort")], case, 1, say)
            case |= scout.checks[0]
            traces = [
                Contender("regimes, one per core", f"{MODULE}:traces"),
                Contender("regimes, one core", f"{MODULE}:trace"),
                Contender("regimes, one core, XTrace", f"{MODULE}:trace", options={"method": "xtrace"}),
                Contender("PyHessian, probes to equal error", f"{MODULE}:trace_pyhessian"),
                Contender("PyHessian, torch's threads", f"{MODULE}:trace_pyhessian", threads=0),
                Contender("curvlinops, XTrace, as many products as ours", f"{MODULE}:trace_curvlinops"),
            ]
            timings = run_contenders(traces, case, options.rounds, say)
            noted = [
                f"to a standard error of {TRACE_REL_STDERR:.0%}, for which PyHessian needs {case['probes']} probes; "
                f"products: Hessian-vector products, or gradients where the Hessian is split (regimes)",
                CORES_NOTE,
            ]
            tables.append(
                RateTable(
                    f"Hessian trace: {title}", "traces/hour", 3600.0, timings, ["trace", "products"], noted
                ).table()
            )
            values = [
                Contender("regimes (Lanczos), one per core", f"{MODULE}:tops"),
                Contender("regimes, one core", f"{MODULE}:top"),
                Contender("PyHessian, power iteration", f"{MODULE}:top_pyhessian"),
                Contender("PyHessian, torch's threads", f"{MODULE}:top_pyhessian", threads=0),
                Contender("curvlinops, Lanczos of SciPy", f"{MODULE}:top_curvlinops"),
            ]
            timings = run_contenders(values, case, options.rounds, say)
            noted = [
                f"to a relative error of {TOP_REL_ERROR:g} of {case['top']:.6g}; PyHessian's tolerance has to be "
                f"{case['tolerance']:g}",
                CORES_NOTE,
            ]
            tables.append(
                RateTable(f"Top eigenvalue: {title}", "values/hour", 3600.0, timings, ["top_error"], noted).table()
            )
    return benchmark_page("hessian", tables)


def _subject(case: Case) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    split = fixed_subset(data_of(case).train, case["hessian_images"])
    device = case.get("device", "cpu")
    model = load_trained(case).eval()
    few = (split.inputs[:8].to(device), split.targets[:8].to(device))
    for method in get_args(Method):  # libraries set themselves up on first use
        hessian_trace(model, F.cross_entropy, few, None, 0.5, max_probes=8, method=method)
    return model, (split.inputs.to(device), split.targets.to(device))


def required_effort(case: Case) -> dict[str, Any]:
    """Return the Hutchinson probes and PyHessian tolerance that the accuracy requires, and the exact top eigenvalue."""
    model, data = _subject(case)
    hessian = HessianOperator(model, F.cross_entropy, data)
    some = hutchinson(hessian, torch.Generator().manual_seed(99), 30, None, 30)
    probes = max(2, round(30 * (some.stderr / (TRACE_REL_STDERR * abs(some.value))) ** 2))
    top = hessian_top(model, F.cross_entropy, data, tolerance=1e-5, max_steps=200).value
    tolerance = TOP_REL_ERROR
    while abs(_power(model, data, tolerance, torch.Generator().manual_seed(99)) - top) > TOP_REL_ERROR * top:
        tolerance /= 4
        if tolerance < 1e-7:
            break
    return {"seconds": 1.0, "units": 1, "probes": probes, "top": top, "tolerance": tolerance}


def _power(model: nn.Module, data: tuple[Tensor, Tensor], tolerance: float, generator: torch.Generator) -> float:
    """PyHessian's top eigenvalue at a given tolerance."""
    return reference_top(model, F.cross_entropy, data, None, tolerance, 1000, generator).value


def _repeated(case: Case, ready: Ready, once: Once) -> dict[str, Any]:
    """Repeat an estimate with different generators; return the total seconds and the mean results."""
    generators = [torch.Generator().manual_seed(100 * case["round"] + each) for each in range(case["repeats"])]
    ready()
    started = time.perf_counter()
    found = [once(generator) for generator in generators]
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "units": len(found),
        **{name: mean([each[name] for each in found]) for name in found[0]},
    }


def trace(case: Case, ready: Ready = lambda: None) -> dict[str, Any]:
    """Hessian trace with this package."""
    model, data = _subject(case)
    method = case.get("method", "auto")

    def once(generator: torch.Generator) -> dict[str, float]:
        found = hessian_trace(
            model, F.cross_entropy, data, None, TRACE_REL_STDERR, generator, method=method, max_probes=4000
        )
        return {"trace": found.value, "products": found.samples}

    return _repeated(case, ready, once)


def trace_pyhessian(case: Case) -> dict[str, Any]:
    """Hessian trace with PyHessian, with the probes that the accuracy requires."""
    model, data = _subject(case)

    def once(generator: torch.Generator) -> dict[str, float]:
        found = reference_trace(model, F.cross_entropy, data, None, case["probes"], generator)
        return {"trace": found.value, "products": found.samples}

    return _repeated(case, lambda: None, once)


def trace_curvlinops(case: Case) -> dict[str, Any]:
    """Hessian trace with curvlinops' XTrace, with as many products as `trace` needs: it has no accuracy option."""
    from curvlinops import xtrace

    model, data = _subject(case)
    products = round(trace({**case, "method": "xtrace", "repeats": 1})["products"])

    def once(generator: torch.Generator) -> dict[str, float]:
        torch.manual_seed(generator.initial_seed())
        return {"trace": float(xtrace(_theirs(model, data), products)), "products": products}

    return _repeated(case, lambda: None, once)


def top(case: Case, ready: Ready = lambda: None) -> dict[str, Any]:
    """Top eigenvalue with this package."""
    model, data = _subject(case)

    def once(generator: torch.Generator) -> dict[str, float]:
        found = hessian_top(model, F.cross_entropy, data, None, generator, tolerance=TOP_REL_ERROR, max_steps=200)
        return {"top_error": abs(found.value / case["top"] - 1), "products": found.samples}

    return _repeated(case, ready, once)


def top_pyhessian(case: Case) -> dict[str, Any]:
    """Top eigenvalue with PyHessian's power iteration, with the tolerance that the accuracy requires."""
    model, data = _subject(case)

    def once(generator: torch.Generator) -> dict[str, float]:
        return {"top_error": abs(_power(model, data, case["tolerance"], generator) / case["top"] - 1)}

    return _repeated(case, lambda: None, once)


def top_curvlinops(case: Case) -> dict[str, Any]:
    """Top eigenvalue with curvlinops' operator and SciPy's Lanczos."""
    from scipy.sparse.linalg import eigsh

    model, data = _subject(case)

    def once(generator: torch.Generator) -> dict[str, float]:
        start = torch.randn(sum(each.numel() for each in model.parameters()), generator=generator).numpy()
        operator = _theirs(model, data).to_scipy()
        (value,) = eigsh(operator, k=1, which="LA", tol=TOP_REL_ERROR, v0=start, return_eigenvectors=False)
        return {"top_error": abs(float(value) / case["top"] - 1)}

    return _repeated(case, lambda: None, once)


def traces(case: Case) -> dict[str, Any]:
    """Hessian traces with this package, on every core."""
    return in_workers(_trace_of, case, [case["workers"] * case["round"] + each for each in range(case["workers"])])


def tops(case: Case) -> dict[str, Any]:
    """Top eigenvalues with this package, on every core."""
    return in_workers(_top_of, case, [case["workers"] * case["round"] + each for each in range(case["workers"])])


def _trace_of(case: Case, number: int, ready: Ready) -> dict[str, Any]:
    return trace({**case, "round": number}, ready)


def _top_of(case: Case, number: int, ready: Ready) -> dict[str, Any]:
    return top({**case, "round": number}, ready)


def _theirs(model: nn.Module, data: tuple[Tensor, Tensor]) -> Any:
    """curvlinops' Hessian."""
    from curvlinops import HessianLinearOperator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = [each for each in model.parameters() if each.requires_grad]
        return HessianLinearOperator(model, nn.CrossEntropyLoss(), weights, [data], check_deterministic=False)
