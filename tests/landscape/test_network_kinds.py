"""Every landscape measure on every kind of network: right, against float64 brute force, or refused in one line."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from network_kinds import KINDS, NO_FISHER, NO_HESSIAN, Kind
from torch import Tensor, nn
from torch.func import functional_call

import regimes
from regimes import UserError
from regimes.data.inputs import arguments, call
from regimes.landscape.error import error_and_loss, mean_error
from regimes.landscape.hessian_operator import HessianOperator, dense_gradients

NAMES = list(KINDS)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second derivatives of small convolutions as on a GPU; other tests take those of a CPU."""
    monkeypatch.setattr("regimes.landscape.convolution_derivatives.MIN_CPU_MULTIPLICATIONS", 0)


def loss_at(kind: Kind, model: nn.Module, weights: dict[str, Tensor]) -> Tensor:
    with dense_gradients(model):
        return kind.loss(plain(functional_call(model, weights, *arguments(kind.inputs))), kind.targets)


def plain(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs["logits"]


@functools.cache
def brute_force(name: str) -> tuple[Tensor, Tensor]:
    """Gradient (p,) and Hessian (p, p) by double differentiation, one coordinate at a time."""
    kind = KINDS[name]
    model = kind.network()
    model.plain = True  # an embedding bag
    leaves = {key: each for key, each in model.named_parameters() if each.requires_grad}
    every = list(leaves.values())
    first = _gradient(loss_at(kind, model, dict(leaves)), every, create_graph=True)
    rows = [
        _gradient(each, every, retain_graph=True) if each.requires_grad else torch.zeros_like(first) for each in first
    ]
    return first.detach(), torch.stack(rows).detach()


def _gradient(value: Tensor, leaves: list[Any], **kept: bool) -> Tensor:
    parts = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True, **kept)
    return torch.cat([each.reshape(-1) for each in parts])


@pytest.mark.parametrize("name", NAMES)
def test_error_and_loss(name: str) -> None:
    kind = KINDS[name]
    model = kind.network()
    with torch.no_grad():
        outputs = plain(call(model.eval(), kind.inputs))
    error, loss = error_and_loss(model, kind.split, kind.loss)
    assert error.value == pytest.approx(float(kind.wrong(outputs, kind.targets)), rel=1e-9)
    assert loss.value == pytest.approx(float(kind.loss(outputs, kind.targets)), rel=1e-6)
    assert mean_error(model, kind.split, kind.loss) == pytest.approx(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_hessian(name: str) -> None:
    kind = KINDS[name]
    model = kind.network()
    if name in NO_HESSIAN:
        with pytest.raises(UserError, match=NO_HESSIAN[name]):
            regimes.hessian_top(model, kind.loss, (kind.inputs, kind.targets))
        return
    gradient, hessian = brute_force(name)
    for chunk in (0, 7):
        operator = HessianOperator(model, kind.loss, (kind.inputs, kind.targets), chunk=chunk)
        vector = operator.normal(torch.Generator().manual_seed(0))
        assert torch.allclose(operator @ vector, hessian @ vector, rtol=1e-5, atol=1e-7)
        assert torch.allclose(operator.loss_and_gradient()[1], gradient, rtol=1e-5, atol=1e-8)
    found = regimes.hessian_trace(model, kind.loss, (kind.inputs, kind.targets), rel_stderr=0.05)
    assert found.value == pytest.approx(float(hessian.trace()), abs=5 * found.stderr + 1e-5)
    top = regimes.hessian_top(model, kind.loss, (kind.inputs, kind.targets))
    assert top.value == pytest.approx(float(torch.linalg.eigvalsh(hessian).max()), rel=1e-2, abs=1e-6)
    layers = regimes.layer_traces(model, kind.loss, (kind.inputs, kind.targets), rel_stderr=0.1)
    total = sum(each.value for each in layers.values())
    spread = sum(each.stderr**2 for each in layers.values()) ** 0.5
    assert total == pytest.approx(float(hessian.trace()), abs=6 * spread + 1e-5)
    sharp = regimes.sharpness(model, kind.loss, (kind.inputs, kind.targets), rho=0.05)
    step = dict(zip(*_step(model, 0.05 * gradient / gradient.norm()), strict=True))
    rise = loss_at(kind, model, step) - loss_at(kind, model, {})
    assert sharp.value == pytest.approx(float(rise), rel=1e-5, abs=1e-9)


def _step(model: nn.Module, vector: Tensor) -> tuple[list[str], list[Tensor]]:
    trained = {key: each.detach() for key, each in model.named_parameters() if each.requires_grad}
    parts = vector.split([each.numel() for each in trained.values()])
    return list(trained), [each + part.view_as(each) for each, part in zip(trained.values(), parts, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_fisher(name: str) -> None:
    kind = KINDS[name]
    model = kind.network()
    if name in NO_FISHER:
        with pytest.raises(UserError, match=NO_FISHER[name]):
            regimes.fisher_trace(model, kind.loss, (kind.inputs, kind.targets))
        return
    found = regimes.fisher_trace(model, kind.loss, (kind.inputs, kind.targets))
    leaves = [each for each in model.parameters() if each.requires_grad]
    squares = []
    for row in range(len(kind.targets)):
        with dense_gradients(model):
            loss = kind.loss(plain(call(model, kind.inputs[row : row + 1])), kind.targets[row : row + 1])
        parts = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        squares.append(sum(float(each.square().sum()) for each in parts))
    assert found.value == pytest.approx(sum(squares) / len(squares), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_connectivity(name: str) -> None:
    """The error along the line against weights interpolated here; the path to itself is flat."""
    kind = KINDS[name]
    a, b = kind.network(0), kind.network(1)
    data = (kind.inputs, kind.targets)
    line = regimes.linear_connectivity(a, b, data, points=3, loss_fn=kind.loss)
    ends = [float(kind.wrong(plain(call(each.eval(), kind.inputs)).detach(), kind.targets)) for each in (a, b)]
    if name not in ("batch-norm", "spectral-norm"):  # estimated anew along the line
        middle = copy.deepcopy(a).eval()
        with torch.no_grad():
            for one, other in zip(middle.parameters(), b.parameters(), strict=True):
                one.lerp_(other, 0.5)
            wrong = float(kind.wrong(plain(call(middle, kind.inputs)), kind.targets))
        assert line.error == pytest.approx((ends[0], wrong, ends[1]), rel=1e-9)
    flat = regimes.linear_connectivity(a, copy.deepcopy(a), data, points=3, loss_fn=kind.loss)
    assert flat.value == pytest.approx(0, abs=1e-12)
    curve = regimes.curve_connectivity(a, b, data, epochs=1, points=3, loss_fn=kind.loss)
    assert all(each >= 0 for each in curve.error)
    if name not in ("batch-norm", "spectral-norm"):
        assert (curve.error[0], curve.error[-1]) == pytest.approx(ends, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_similarity(name: str) -> None:
    kind = KINDS[name]
    a, b = kind.network(0), kind.network(1)
    assert regimes.cka(a, a, kind.inputs, on="logits").value == pytest.approx(1)
    assert 0 <= regimes.cka(a, b, kind.inputs, on="logits").value < 1
    assert regimes.output_distance(a, a, kind.inputs).value == 0
    if name not in ("regression", "one-logit", "multi-label"):
        outputs = [plain(call(each.eval(), kind.inputs)).detach() for each in (a, b)]
        dimension = {3: -1}.get(outputs[0].dim(), 1)
        differ = (outputs[0].argmax(dimension) != outputs[1].argmax(dimension)).double().mean()
        assert regimes.disagreement(a, b, kind.inputs).value == pytest.approx(float(differ))
        assert regimes.js_divergence(a, a, kind.inputs).value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_matching_keeps_the_function_or_is_refused(name: str) -> None:
    pytest.importorskip("torch_pruning")
    kind = KINDS[name]
    a, b = kind.network(0), kind.network(1)
    try:
        matched = regimes.match(a, b, kind.inputs[:2])
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    before, after = (plain(call(each.eval(), kind.inputs)) for each in (b, matched))
    assert torch.allclose(before, after, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_measure_by_name(name: str) -> None:
    kind = KINDS[name]
    names = ["error", "lmc", "cka"] + ([] if name == "complex" else ["hessian_trace"])
    options = {"cka": {"on": "logits"}} if name == "regression" else {}
    found = regimes.measure(
        [kind.network(0), kind.network(1)], (kind.inputs, kind.targets), names, options, loss_fn=kind.loss
    )
    outputs = plain(call(kind.network(0).eval(), kind.inputs)).detach()
    (error,) = (each.value for each in found if each.variable == "train_error" and each.networks == (0,))
    assert error.value == pytest.approx(float(kind.wrong(outputs, kind.targets)))  # type: ignore[union-attr]
