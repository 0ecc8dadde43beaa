"""Benchmark ``check``: compare engines and measures on a device with a CPU, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.experiment.context import in_layout
from regimes.landscape.cka import cka
from regimes.landscape.hessian import hessian_top, hessian_trace
from regimes.landscape.linear_path import linear_connectivity
from regimes.models.build import build, seeded
from regimes.plots.text_table import TextTable
from regimes.pruners.prunable_weights import prunable
from regimes.pruners.prune import Candidate, prune
from regimes.pruners.snip import snip
from regimes.research.page import Page, Say, benchmark_page
from regimes.research.speed.harness import Case, Contender, run_contenders
from regimes.training import ENGINES
from regimes.training.fleet import Lane
from regimes.training.train import train_fleet

MODULE = "regimes.research.speed.device_conformance"
MAX_RELATIVE_DIFFERENCE = 1e-6  # that rounding in float64 may cause over a few steps
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"widths": [16, 16], "batch_norm": True},
    "preresnet": {"depth": 8, "width": 8},
}


def bench(device: str, rounds: int, images: str, say: Say) -> Page:
    """Run the comparison; ``rounds`` and ``images`` are not used."""
    (found,) = run_contenders(
        [Contender(f"{device} against a CPU", f"{MODULE}:differences")], {"device": device}, 1, say
    )
    rows = [["", "relative difference", ""]]
    for name, difference in found.checks[0].items():
        rows.append([name, f"{difference:.1e}", "equal" if difference <= MAX_RELATIVE_DIFFERENCE else "NOT EQUAL"])
    title = f"{device} against eager training and measures on a CPU, float64"
    return benchmark_page(
        "check", [TextTable(title, rows, [f"equal: at most {MAX_RELATIVE_DIFFERENCE:g}"], found.checks[0])]
    )


def differences(case: Case) -> dict[str, Any]:
    """Train and measure the same networks on a CPU one by one, and on the device with every engine."""
    if case["device"] != "cpu":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    found: dict[str, float] = {}
    for name, options in NETWORKS.items():
        expected = _trained(name, options, "eager", "cpu")
        for engine in ENGINES:
            ends = _trained(name, options, engine, case["device"])
            found[f"{name}, engine {engine}"] = max(
                _apart(one, other) for one, other in zip(expected, ends, strict=True)
            )
        others = _measures(name, options, case["device"], expected)
        for measure, values in _measures(name, options, "cpu", expected).items():
            found[f"{name}, {measure}"] = _apart(values, others[measure])
    found["LSTM in eval mode, SNIP scores and top eigenvalue"] = _apart(_recurrent("cpu"), _recurrent(case["device"]))
    return {"seconds": 1.0, "units": 1, **found}


def _data(device: str) -> Dataset:
    data = synthetic(shape=[1, 8, 8], classes=4, train=160, test=40, spread=2.0)
    return data.to(torch.device(device), torch.float64, torch.channels_last)


def _network(name: str, options: dict[str, Any], seed: int, device: str) -> torch.nn.Module:
    return in_layout(build(name, options, (1, 8, 8), 4, seed).double().to(device), torch.channels_last)


def _trained(name: str, options: dict[str, Any], engine: str, device: str) -> list[Tensor]:
    """Weights of three pruned networks after two epochs with SAM, each with its own learning rate."""
    lanes = []
    for seed in range(3):
        network = _network(name, options, seed, device)
        recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.02 * (1 + seed), sam_rho=0.05)
        lanes.append(Lane(network, recipe, ("check", seed), prune(network, 0.5).to(torch.device(device))))
    ends = dict(train_fleet(lanes, _data(device), [2], engine))
    return [torch.cat([each.flatten().double() for each in ends[seed].weights.values()]) for seed in range(3)]


def _measures(name: str, options: dict[str, Any], device: str, weights: list[Tensor]) -> dict[str, Tensor]:
    a, b = (_filled(_network(name, options, seed, device), weights[seed]) for seed in (0, 1))
    split = _data(device).train
    line = linear_connectivity(a, b, split)
    measured: dict[str, Callable[[], float]] = {
        "CKA": lambda: cka(a, b, split.inputs).value,
        "Hessian trace": lambda: hessian_trace(a, F.cross_entropy, split, probes=8).value,
        "Hessian trace to 10 %": lambda: hessian_trace(a, F.cross_entropy, split, rel_stderr=0.1).value,
        "XTrace": lambda: hessian_trace(a, F.cross_entropy, split, rel_stderr=0.1, method="xtrace").value,
        "top eigenvalue": lambda: hessian_top(a, F.cross_entropy, split, tolerance=1e-6).value,
    }
    found = {measure: torch.tensor([work()], dtype=torch.float64) for measure, work in measured.items()}
    return {"error and loss on the linear path": torch.tensor([*line.error, *line.loss], dtype=torch.float64), **found}


class Rows(torch.nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = torch.nn.LSTM(8, 6, batch_first=True), torch.nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.head(self.rows(images[:, 0])[0][:, -1])
        return answers


def _recurrent(device: str) -> Tensor:
    with seeded(0):
        model = Rows().double()
    model, data = model.to(device), _data(device)
    scores = snip(Candidate(model, prunable(model), 0.5, data, F.cross_entropy, torch.Generator()))
    top = hessian_top(model, F.cross_entropy, data.train, tolerance=1e-6).value
    return torch.cat([*(each.cpu().flatten() for each in scores.values()), torch.tensor([top], dtype=torch.float64)])


def _filled(model: torch.nn.Module, flat: Tensor) -> torch.nn.Module:
    state = model.state_dict()
    parts = flat.split([each.numel() for each in state.values()])
    model.load_state_dict({name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)})
    return model


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other.cpu()).norm() / (one.norm() + 1e-300))
