"""Benchmark ``check``: compare engines, measures and pruners on a device with a CPU, in float64."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset, Split
from regimes.data.synthetic import synthetic
from regimes.data.uint8_images import Uint8Images
from regimes.device_faults import fault_of
from regimes.experiment.context import in_layout
from regimes.experiment.numerics import use_deterministic_kernels
from regimes.landscape.cka import cka
from regimes.landscape.hessian import hessian_top, hessian_trace
from regimes.landscape.linear_path import linear_connectivity
from regimes.models.build import build, seeded
from regimes.plots.text_table import TextTable
from regimes.pruners import ALLOCATIONS, PRUNERS
from regimes.pruners.prunable_weights import prunable
from regimes.pruners.prune import Candidate, prune
from regimes.pruners.snip import snip
from regimes.research.page import Page, Say, benchmark_page
from regimes.research.speed.harness import BenchOptions, Case, Contender, run_contenders
from regimes.training import ENGINES
from regimes.training.fleet import Lane
from regimes.training.precision import PRECISIONS
from regimes.training.train import train_fleet

MODULE = "regimes.research.speed.device_conformance"
MAX_RELATIVE_DIFFERENCE = 1e-6  # that rounding in float64 may cause over a few steps
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"widths": [16, 16], "batch_norm": True},
    "preresnet": {"depth": 8, "width": 8},
}


def bench(options: BenchOptions, say: Say) -> Page:
    """Run the comparison."""
    (found,) = run_contenders(
        [Contender(f"{options.device} against a CPU", f"{MODULE}:differences")], {"device": options.device}, 1, say
    )
    rows = [["", "relative difference", ""]]
    for name, difference in found.checks[0].items():
        if isinstance(difference, str):
            rows.append([name, "", difference])
        else:
            rows.append([name, f"{difference:.1e}", "equal" if difference <= MAX_RELATIVE_DIFFERENCE else "NOT EQUAL"])
    title = f"{options.device} against eager training and measures on a CPU, float64"
    table = TextTable(title, rows, [f"equal: at most {MAX_RELATIVE_DIFFERENCE:g}"], found.checks[0])
    failed = any(row[2] != "equal" for row in rows[1:])
    return dataclasses.replace(benchmark_page("check", [table]), failed=failed)


def differences(case: Case) -> dict[str, Any]:
    """Train and measure the same networks on a CPU and on the device; what the device fails at is said in its place."""
    use_deterministic_kernels(case["device"])
    found: dict[str, Any] = {}
    for name, work in _comparisons(case["device"]).items():
        try:
            found[name] = work()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            if fault_of(error):  # the others would fail, too
                break
    return {"seconds": 1.0, "units": 1, **found}


def _comparisons(device: str) -> dict[str, Callable[[], float]]:
    """Every comparison by name, each a function that returns a relative difference."""
    found: dict[str, Callable[[], float]] = {}
    for name in NETWORKS:
        for engine in ENGINES:
            found[f"{name}, engine {engine}"] = partial(_engine_apart, name, engine, device)
        for measure in MEASURES:
            found[f"{name}, {measure}"] = partial(_measure_apart, name, measure, device)
    for pruner in PRUNERS:
        found[f"masks of {pruner}"] = partial(_masks_apart, pruner, device)
    for measure in ("error and loss on the linear path", "CKA"):
        found[f"byte images, {measure}"] = partial(_byte_images_apart, measure, device)
    found["LSTM in eval mode, SNIP scores and top eigenvalue"] = partial(_recurrent_apart, device)
    for precision in PRECISIONS:
        found[f"graphed in {precision}, alone and among eight"] = partial(_neighbours_apart, precision, device)
    return found


def _engine_apart(name: str, engine: str, device: str) -> float:
    expected, found = _trained(name, "eager", "cpu"), _trained(name, engine, device)
    return max(_apart(one, other) for one, other in zip(expected, found, strict=True))


def _measure_apart(name: str, measure: str, device: str) -> float:
    weights = _trained(name, "eager", "cpu")
    found = []
    for where in ("cpu", device):
        models = [_filled(_network(name, seed, where), weights[seed]) for seed in (0, 1)]
        found.append(torch.tensor(MEASURES[measure](*models, _data(where).train), dtype=torch.float64))
    return _apart(*found)


def _masks_apart(pruner: str, device: str) -> float:
    """Largest fraction of weights, over the allocations, that are kept on one device only."""
    found = []
    for allocation in ALLOCATIONS:
        masks = []
        for where in ("cpu", device):
            model = _network("preresnet", 0, where)
            layers = prune(model, 0.3, pruner, allocation, _data(where)).layers
            masks.append(torch.cat([each.flatten().cpu() for each in layers.values()]))
        found.append(float((masks[0] != masks[1]).double().mean()))
    return max(found)


def _byte_images_apart(measure: str, device: str) -> float:
    """Relative difference of a measure on images that are held as bytes."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (96, 1, 8, 8), dtype=torch.uint8, generator=draw)
    images = Uint8Images(pixels, torch.arange(96), torch.full((1,), 0.5), torch.full((1,), 0.25))
    plain = Split(images, torch.randint(0, 4, (96,), generator=draw))
    found = []
    for where in ("cpu", device):
        data = Dataset(plain, plain, plain, 4, "bytes").to(torch.device(where), torch.float64, torch.channels_last)
        models = [_network("preresnet", seed, where) for seed in (0, 1)]
        found.append(torch.tensor(MEASURES[measure](*models, data.train), dtype=torch.float64))
    return _apart(*found)


class Rows(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.head(self.rows(images[:, 0])[0][:, -1])
        return answers


def _recurrent_apart(device: str) -> float:
    """Relative difference of SNIP scores and the top eigenvalue of a recurrent network, taken in eval mode."""
    found = []
    for where in ("cpu", device):
        with seeded(0):
            model = Rows().double()
        model, data = model.to(where), _data(where)
        scores = snip(Candidate(model, prunable(model), 0.5, data, F.cross_entropy, torch.Generator()))
        top = hessian_top(model, F.cross_entropy, data.train, tolerance=1e-6).value
        flat = [*(each.cpu().flatten() for each in scores.values()), torch.tensor([top], dtype=torch.float64)]
        found.append(torch.cat(flat))
    return _apart(*found)


def _neighbours_apart(precision: str, device: str) -> float:
    """Fraction of weights that differ in any bit between a network trained alone and among eight."""
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.05)
    data = _data(device).to(torch.device(device), torch.float32, torch.channels_last)
    ends = []
    for count in (1, 8):
        models = [_network("preresnet", seed, device).float() for seed in range(count)]
        lanes = [Lane(model, recipe, ("check", seed)) for seed, model in enumerate(models)]
        trained = dict(train_fleet(lanes, data, [2], "graphed", precision=precision))
        ends.append(torch.cat([each.flatten().double() for each in trained[0].weights.values()]))
    return float((ends[0] != ends[1]).double().mean())


def _data(device: str) -> Dataset:
    data = synthetic(shape=[1, 8, 8], classes=4, train=160, test=40, spread=2.0)
    return data.to(torch.device(device), torch.float64, torch.channels_last)


def _network(name: str, seed: int, device: str) -> nn.Module:
    return in_layout(build(name, NETWORKS[name], (1, 8, 8), 4, seed).double().to(device), torch.channels_last)


@functools.cache
def _trained(name: str, engine: str, device: str) -> list[Tensor]:
    """Weights of three pruned networks after two epochs with SAM, each with its own learning rate."""
    lanes = []
    for seed in range(3):
        network = _network(name, seed, device)
        recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.02 * (1 + seed), sam_rho=0.05)
        lanes.append(Lane(network, recipe, ("check", seed), prune(network, 0.5).to(torch.device(device))))
    ends = dict(train_fleet(lanes, _data(device), [2], engine))
    return [torch.cat([each.flatten().double() for each in ends[seed].weights.values()]) for seed in range(3)]


def _path(a: nn.Module, b: nn.Module, split: Split) -> list[float]:
    line = linear_connectivity(a, b, split)
    return [*line.error, *line.loss]


MEASURES: dict[str, Callable[..., list[float]]] = {
    "error and loss on the linear path": _path,
    "CKA": lambda a, b, split: [cka(a, b, split.inputs).value],
    "Hessian trace": lambda a, b, split: [hessian_trace(a, F.cross_entropy, split, probes=8).value],
    "Hessian trace to 10 %": lambda a, b, split: [hessian_trace(a, F.cross_entropy, split, rel_stderr=0.1).value],
    "XTrace": lambda a, b, split: [hessian_trace(a, F.cross_entropy, split, rel_stderr=0.1, method="xtrace").value],
    "top eigenvalue": lambda a, b, split: [hessian_top(a, F.cross_entropy, split, tolerance=1e-6).value],
}


def _filled(model: torch.nn.Module, flat: Tensor) -> torch.nn.Module:
    state = model.state_dict()
    parts = flat.split([each.numel() for each in state.values()])
    model.load_state_dict({name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)})
    return model


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other.cpu()).norm() / (one.norm() + 1e-300))
