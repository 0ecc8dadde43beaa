"""Study ``calibration``: coverage of the confidence intervals of all estimates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from regimes.data.dataset import Dataset
from regimes.data.synthetic import synthetic
from regimes.experiment.context import one_thread
from regimes.landscape.agreement import disagreement, js_divergence, output_distance
from regimes.landscape.cka import cka
from regimes.landscape.error import error_and_loss
from regimes.landscape.estimate import Estimate
from regimes.landscape.fisher_and_ggn import fisher_trace, gauss_newton_trace, layer_traces
from regimes.landscape.hessian import hessian_top, hessian_trace
from regimes.landscape.linear_path import linear_connectivity
from regimes.landscape.spectrum import Spectrum, hessian_spectrum
from regimes.landscape.trace_estimators import Method
from regimes.models.build import build
from regimes.plots.text_table import TextTable
from regimes.research.page import Page, Say
from regimes.research.studies.peak_memory import memory_table

REPETITIONS = 200
Z_95 = 1.96  # half width of the interval in standard errors
CURVATURE_IMAGES = 60  # for curvature measures
SAMPLE_SIZE = 300  # images, where the images are the random sample
POOL_SIZE = 20_000  # images that samples are drawn from

Draw = Callable[[int], Estimate]


def study(out: Path, runs: Path, say: Say) -> Page:
    """Count how often the interval of every estimate covers the exact value; compare measured and planned memory."""
    with one_thread():
        rows, facts = [], []
        for name, truth, draw in _cases():
            found = [draw(seed) for seed in range(REPETITIONS)]
            row = _row(name, truth, found)
            say(f"{name}: {row['covered']:.1%} of {REPETITIONS}")
            facts.append(row)
            rows.append(
                [
                    name,
                    f"{truth:.5g}",
                    f"{row['mean']:.5g}",
                    f"{row['spread']:.2g}",
                    f"{row['stderr']:.2g}",
                    f"{row['covered']:.1%}",
                ]
            )
    head = ["estimate", "exact value", "mean", "standard deviation", "mean standard error", "within ± 1.96 s.e."]
    table = TextTable(f"Coverage over {REPETITIONS} repetitions", [head, *rows], NOTES, facts)
    return Page("calibration", "Calibration of confidence intervals", PARAGRAPHS, [table, memory_table(say)])


PARAGRAPHS = [
    "Every estimate has a standard error. Here each estimate is repeated "
    f"{REPETITIONS} times on a small trained network, where the exact value can be computed, and counted as covered if "
    "the exact value is within 1.96 standard errors. A calibrated 95 % interval covers about 95 %; over 200 "
    "repetitions anything from 92 to 98 % may be due to chance.",
    "Curvature estimates are random in their probes: the exact value is computed from the whole Hessian in float64. "
    "Errors, connectivity and similarity are random in the images: samples are drawn from a pool, whose value is taken "
    "as the exact one.",
]
NOTES = [
    f"curvature on {CURVATURE_IMAGES} inputs; the non-Gauss-Newton part of the Hessian has a zero diagonal for ReLU, "
    "not tanh",
    f"over images: samples of {SAMPLE_SIZE} from a pool of {POOL_SIZE:,}",
    "top eigenvalue: the standard error is a bound; too small where Lanczos has found only the second eigenvalue",
    "shares of eigenvalues: the standard error includes a bound of the quadrature error, so above 95 % is expected",
    "first layer's trace, ReLU: exact",
]


def _row(name: str, truth: float, found: list[Estimate]) -> dict[str, Any]:
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    errors = torch.tensor([each.stderr for each in found], dtype=torch.float64)
    slack = 1e-5 * abs(truth)  # float32 rounding of exact estimates
    covered = ((values - truth).abs() <= Z_95 * errors + slack).double().mean()
    return {
        "estimate": name,
        "exact": truth,
        "mean": float(values.mean()),
        "spread": float(values.std()),
        "stderr": float(errors.mean()),
        "covered": float(covered),
    }


def _cases() -> Iterator[tuple[str, float, Draw]]:
    yield from _curvature()
    yield from _over_images()


def _curvature() -> Iterator[tuple[str, float, Draw]]:
    data = _data(CURVATURE_IMAGES)
    few = data.train.inputs[:CURVATURE_IMAGES], data.train.targets[:CURVATURE_IMAGES]
    for kind in (nn.ReLU, nn.Tanh):
        model, name = _network(kind, data, 0), kind.__name__
        H = _hessian(model, few)
        size, trace = len(H), float(H.trace())
        methods: tuple[Method, ...] = ("auto", "xtrace", "hutchinson")
        for method in methods:
            yield f"Hessian trace, {name}, '{method}' to 5 %", trace, _traced(model, few, method)
        yield f"Hessian trace, {name}, 20 probes", trace, _traced(model, few, "auto", 20)
        first = next(iter(dict(model.named_parameters())))
        own = float(H.diagonal()[: model.get_parameter(first).numel()].sum())
        yield f"first layer's trace, {name}", own, _layer(model, few, first)
        spectrum = _spectra(model, few)
        yield f"spectrum's mean, {name}", trace / size, functools.partial(_mean, spectrum)
        values = torch.linalg.eigvalsh(H)
        middle = float(values[int(0.8 * size)] + values[int(0.8 * size) + 1]) / 2
        share = float((values <= middle).double().mean())
        below = functools.partial(_below, spectrum, middle)
        yield f"share of eigenvalues up to {middle:.2g}, {name}", share, below
        yield f"top eigenvalue, {name}", float(values[-1]), _top(model, few)
    model = _network(nn.ReLU, data, 0)
    exact = gauss_newton_trace(model.double(), F.cross_entropy, (few[0].double(), few[1]), rel_stderr=1e-9).value
    yield "Gauss-Newton trace, to 10 %", exact, _gauss(model.float(), few)


def _traced(model: nn.Module, few: tuple[Tensor, Tensor], method: Method, probes: int = 0) -> Draw:
    def draw(seed: int) -> Estimate:
        generator = torch.Generator().manual_seed(seed)
        goal = None if probes else 0.05
        return hessian_trace(model, F.cross_entropy, few, None, goal, generator, probes=probes, method=method)

    return draw


def _layer(model: nn.Module, few: tuple[Tensor, Tensor], name: str) -> Draw:
    return lambda seed: layer_traces(
        model, F.cross_entropy, few, rel_stderr=0.05, generator=torch.Generator().manual_seed(seed)
    )[name]


def _spectra(model: nn.Module, few: tuple[Tensor, Tensor]) -> Callable[[int], Spectrum]:
    @functools.cache
    def draw(seed: int) -> Spectrum:
        generator = torch.Generator().manual_seed(seed)
        return hessian_spectrum(model, F.cross_entropy, few, generator=generator, probes=10, steps=30)

    return draw


def _mean(spectrum: Callable[[int], Spectrum], seed: int) -> Estimate:
    return spectrum(seed).moment(1)


def _below(spectrum: Callable[[int], Spectrum], value: float, seed: int) -> Estimate:
    return spectrum(seed).below(value)


def _top(model: nn.Module, few: tuple[Tensor, Tensor]) -> Draw:
    return lambda seed: hessian_top(
        model, F.cross_entropy, few, generator=torch.Generator().manual_seed(seed), tolerance=0.01
    )


def _gauss(model: nn.Module, few: tuple[Tensor, Tensor]) -> Draw:
    return lambda seed: gauss_newton_trace(
        model, F.cross_entropy, few, rel_stderr=0.1, generator=torch.Generator().manual_seed(seed)
    )


def _over_images() -> Iterator[tuple[str, float, Draw]]:
    data = _data(POOL_SIZE)
    a, b = (_network(nn.ReLU, _data(400), seed) for seed in (0, 1))
    measures: dict[str, Callable[[Any], Estimate]] = {
        "error": lambda split: error_and_loss(a, split, F.cross_entropy)[0],
        "LMC": lambda split: linear_connectivity(a, b, tuple(split)),
        "CKA of softmax": lambda split: cka(a, b, split.inputs),
        "CKA of logits, debiased": lambda split: cka(a, b, split.inputs, on="logits", debiased=True),
        "disagreement": lambda split: disagreement(a, b, split.inputs),
        "Jensen-Shannon divergence": lambda split: js_divergence(a, b, split.inputs),
        "distance of outputs": lambda split: output_distance(a, b, split.inputs),
        "empirical Fisher trace": lambda split: fisher_trace(a, F.cross_entropy, tuple(split)),
    }
    for name, measured in measures.items():
        yield f"{name}, over images", measured(data.train).value, _sampled(data, measured)


def _sampled(data: Dataset, measured: Callable[[Any], Estimate]) -> Draw:
    def draw(seed: int) -> Estimate:
        order = torch.randperm(len(data.train.targets), generator=torch.Generator().manual_seed(seed))[:SAMPLE_SIZE]
        return measured(type(data.train)(data.train.inputs[order], data.train.targets[order]))

    return draw


def _data(count: int) -> Dataset:
    return synthetic(shape=[6], classes=3, train=count * 10 // 9 + 20, test=20, spread=2.0)


def _network(kind: type[nn.Module], data: Dataset, seed: int) -> nn.Module:
    """A small network, trained until it classifies most inputs correctly."""
    model = build("regimes.research.studies.calibration:small", {"activation": kind.__name__}, (6,), 3, seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    inputs, targets = data.train.inputs[:400], data.train.targets[:400]
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model.eval()


def small(input_shape: tuple[int, ...], classes: int, activation: str) -> nn.Module:
    """Return a network with two hidden layers of eight units."""
    act: type[nn.Module] = getattr(nn, activation)
    return nn.Sequential(nn.Linear(input_shape[0], 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, classes))


def _hessian(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """The whole Hessian, differentiated twice in float64."""
    named = {name: each.detach().double() for name, each in model.named_parameters()}
    inputs = data[0].double()

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([each.numel() for each in named.values()])
        weights = {name: part.view_as(each) for (name, each), part in zip(named.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(model, weights, (inputs,)), data[1])

    H: Any = torch.autograd.functional.hessian(loss, torch.cat([each.reshape(-1) for each in named.values()]))
    return H if isinstance(H, Tensor) else H[0]
