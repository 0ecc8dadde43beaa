"""Gauss-Newton, Fisher, traces by layer, sharpness: closed form and brute force in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from curvlinops import EFLinearOperator, GGNLinearOperator, HessianLinearOperator
from hessian_problems import NOTHING, Quadratic, exact, mean, symmetric
from torch import Tensor, nn

from regimes import UserError, hessian_trace
from regimes.landscape.fisher_and_ggn import fisher_trace, gauss_newton_trace, layer_traces
from regimes.landscape.gauss_newton_split import GaussNewtonSplit
from regimes.landscape.hessian_operator import HessianOperator
from regimes.landscape.sharpness import sharpness
from regimes.landscape.spectrum import hessian_eigenvalues
from regimes.models.build import build, seeded
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prune


def data(count: int = 30, classes: int = 3) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, dtype=torch.float64, generator=random), torch.randint(
        0, classes, (count,), generator=random
    )


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 5), activation(), nn.Linear(5, 3)).double()


def single_gradients(model: nn.Module, some: tuple[Tensor, Tensor]) -> Tensor:
    """Gradients of each input's own loss (n, parameters), one backward pass each."""
    rows = []
    for x, y in zip(*some, strict=True):
        loss = F.cross_entropy(model(x[None]), y[None])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([each.reshape(-1) for each in parts]))
    return torch.stack(rows)


def test_a_linear_network_has_gauss_newton_for_its_hessian() -> None:
    model = nn.Linear(6, 3).double()
    truth = float(exact(model, data()).trace())
    assert gauss_newton_trace(model, F.cross_entropy, data(), rel_stderr=1e-9).value == pytest.approx(truth, rel=1e-9)
    assert hessian_trace(model, F.cross_entropy, data(), rel_stderr=1e-9).value == pytest.approx(truth, rel=1e-9)


def test_gauss_newton_is_the_fisher_matrix_of_the_models_own_answers() -> None:
    """By enumeration: every label of every input, weighted by the model's probability of it."""
    model, (x, _) = network(nn.Tanh), data()
    chances = model(x).softmax(dim=1).detach()
    squares = [single_gradients(model, (x, torch.full((len(x),), k))).square().sum(dim=1) for k in range(3)]
    truth = float((chances * torch.stack(squares, dim=1)).sum(dim=1).mean())
    found = gauss_newton_trace(model, F.cross_entropy, data(), rel_stderr=1e-9)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.stderr == 0
    drawn = [
        gauss_newton_trace(
            model, F.cross_entropy, data(), rel_stderr=0.2, generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(40)
    ]
    covered = sum(abs(each.value - truth) <= 2 * each.stderr + 1e-12 for each in drawn)
    assert covered >= 36


@pytest.mark.parametrize("masked", [False, True])
def test_empirical_fisher_is_the_mean_squared_gradient_of_single_inputs(masked: bool) -> None:
    model = network()
    mask = prune(model, 0.4) if masked else None
    rows = single_gradients(model, data())
    if mask is not None:
        alive = {name: mask.layers.get(name, torch.ones_like(each)) for name, each in model.named_parameters()}
        rows = rows * torch.cat([each.reshape(-1).double() for each in alive.values()])
    each = rows.square().sum(dim=1)
    found = fisher_trace(model, F.cross_entropy, data(), mask)
    assert found.value == pytest.approx(float(each.mean()), rel=1e-9)
    assert found.stderr == pytest.approx(float(each.std()) / 30**0.5, rel=1e-9)


def blocks(model: nn.Module, H: Tensor) -> dict[str, float]:
    """Traces of the diagonal blocks of the whole Hessian."""
    sizes = [each.numel() for each in model.parameters()]
    parts = H.diagonal().split(sizes)
    return {name: float(part.sum()) for (name, _), part in zip(model.named_parameters(), parts, strict=True)}


def test_layer_traces_of_a_relu_network_are_exact() -> None:
    model = network()
    found = layer_traces(model, F.cross_entropy, data())
    truth = blocks(model, exact(model, data()))
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert all(each.stderr == 0 for each in found.values())
    assert {name: each.value for name, each in found.items()} == pytest.approx(truth, rel=1e-8)
    assert sum(each.value for each in found.values()) == pytest.approx(
        hessian_trace(model, F.cross_entropy, data(), rel_stderr=1e-9).value, rel=1e-6
    )


@pytest.mark.parametrize("kind", ["smooth", "whole"])
def test_layer_traces_that_need_probes_cover_the_exact_ones(kind: str) -> None:
    def together(answers: Tensor, targets: Tensor) -> Tensor:  # no mean over inputs: it does not split
        return F.cross_entropy(answers, targets) ** 1.5

    model = network(nn.Tanh)
    loss = F.cross_entropy if kind == "smooth" else together
    vector = torch.cat([each.detach().reshape(-1) for each in model.parameters()])
    shapes = [(name, each.shape) for name, each in model.named_parameters()]

    def whole(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for _, shape in shapes])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
        return loss(torch.func.functional_call(model, weights, (data()[0],)), data()[1])

    H = torch.autograd.functional.hessian(whole, vector)
    assert isinstance(H, Tensor)
    truth = blocks(model, H)
    covered = 0
    for seed in range(12):
        found = layer_traces(model, loss, data(), rel_stderr=0.05, generator=torch.Generator().manual_seed(seed))
        covered += sum(abs(found[name].value - truth[name]) <= 1.96 * found[name].stderr + 1e-9 for name in truth)
        # Outputs are the head's bias plus what does not depend on it: Gauss-Newton's trace alone, and that is exact.
        assert (found["4.bias"].stderr == 0) == (kind == "smooth")
        assert found["0.weight"].stderr > 0
    assert covered >= 0.85 * 12 * len(truth)


def test_layer_traces_of_gauss_newton_on_a_masks_support() -> None:
    model = network()
    mask = Mask({"0.weight": torch.zeros(8, 6, dtype=torch.bool)})
    found = layer_traces(model, F.cross_entropy, data(), mask, of="gauss-newton")
    assert found["0.weight"].value == 0
    assert found["2.weight"].value == pytest.approx(
        layer_traces(model, F.cross_entropy, data(), of="gauss-newton")["2.weight"].value, rel=1e-9
    )


def test_what_does_not_go_input_by_input_is_refused() -> None:
    for measure in (gauss_newton_trace, fisher_trace):
        with pytest.raises(UserError, match="need per-input gradients"):
            measure(network(), lambda answers, targets: F.cross_entropy(answers, targets) ** 1.5, data())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_curvlinops_agrees(activation: type[nn.Module]) -> None:
    """An independent library's matrices, whole: Hessian, Gauss-Newton, empirical Fisher (its sign, and its mean)."""
    model, (x, y) = network(activation), data()
    arguments = (model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    eye = torch.eye(sum(each.numel() for each in model.parameters()), dtype=torch.float64)
    H, G, E = (kind(*arguments) @ eye for kind in (HessianLinearOperator, GGNLinearOperator, EFLinearOperator))
    ours = HessianOperator(model, F.cross_entropy, (x, y))
    torch.testing.assert_close(ours.matmat(eye), H, rtol=1e-8, atol=1e-10)
    gauss = gauss_newton_trace(model, F.cross_entropy, (x, y), rel_stderr=1e-9)
    assert gauss.value == pytest.approx(float(G.trace()), rel=1e-9)
    assert fisher_trace(model, F.cross_entropy, (x, y)).value == pytest.approx(float(E.trace()), rel=1e-9)
    top = hessian_eigenvalues(model, F.cross_entropy, (x, y), count=3, tolerance=1e-8)
    assert [each.value for each in top] == pytest.approx(torch.linalg.eigvalsh(H).flip(0)[:3].tolist(), rel=1e-6)


def test_chunks_are_refused_where_they_would_change_the_value() -> None:
    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none").std()

    with pytest.raises(UserError, match="chunk = 7: the loss is neither a sum nor a weighted mean over inputs"):
        hessian_trace(network(), spread, data(), chunk=7)


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(ignore_index=1),
    ],
)
def test_chunks_add_up_to_the_whole(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    whole, parts = (HessianOperator(network(nn.Tanh), loss, data(), chunk=chunk) for chunk in (0, 7))
    vector = whole.normal(torch.Generator().manual_seed(0))
    assert torch.allclose(whole @ vector, parts @ vector, rtol=1e-4, atol=1e-6)


def test_layer_traces_of_something_else() -> None:
    with pytest.raises(UserError, match="allowed: hessian, gauss-newton"):
        layer_traces(network(), F.cross_entropy, data(), of="gauss_newton")  # type: ignore[arg-type]


def test_a_bend_that_these_inputs_do_not_reach_is_seen() -> None:
    """ELU is bent below zero only; where hardly an input gets there, the trace still is not called exact."""
    model = network(nn.ELU)
    with torch.no_grad():
        model[0].bias.add_(3.0)  # type: ignore[operator, union-attr]
    assert not GaussNewtonSplit(model, F.cross_entropy, data(200)).rest_has_zero_diagonal()


# -- sharpness --------------------------------------------------------------------------------------------------------


def test_sharpness_of_a_quadratic_by_hand() -> None:
    """With w along one axis of A the gradient is too: ``L(w + e) - L(w) = l w rho + l rho^2 / 2``."""
    model = Quadratic(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)))
    model.w.data = torch.tensor([2.0, 0.0], dtype=torch.float64)
    rise = 3 * 2 * 0.1 + 3 * 0.1**2 / 2
    one = sharpness(model, mean, NOTHING, rho=0.1)
    assert (one.value, one.stderr) == (pytest.approx(rise), 0.0)
    # Adaptive: the step is scaled by |w| twice over its own length, here 2 * 0.1 along the same axis.
    assert sharpness(model, mean, NOTHING, rho=0.1, adaptive=True).value == pytest.approx(3 * 2 * 0.2 + 3 * 0.2**2 / 2)


def test_ascent_comes_nearer_to_the_maximum_in_the_ball() -> None:
    """Around the minimum of a quadratic the maximum is ``l rho^2 / 2`` with the largest eigenvalue l."""
    A = symmetric(6, 3)
    A = A @ A
    model = Quadratic(A)
    model.w.data = 1e-3 * model.w.data
    top = float(torch.linalg.eigvalsh(A)[-1])
    low = float(mean(model(NOTHING[0]), NOTHING[1]))
    one, many = (sharpness(model, mean, NOTHING, rho=0.5, steps=steps) for steps in (1, 60))
    assert one.value < many.value <= top * 0.501**2 / 2 + 1e-9
    assert many.value + low == pytest.approx(top * 0.5**2 / 2, rel=0.02)
    assert many.stderr < 0.02 * many.value


def test_sharpness_stays_on_the_masks_support_and_leaves_the_model_alone() -> None:
    model = build("mlp", {"widths": [6], "batch_norm": True}, (6,), 3, 0).double()
    mask = prune(model, 0.3)
    mask.apply(model)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    inside, whole = (sharpness(model, F.cross_entropy, data(), each) for each in (mask, None))
    assert inside.value < whole.value
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    gradient = torch.autograd.grad(F.cross_entropy(model.eval()(data()[0]), data()[1]), list(model.parameters()))
    named = zip([name for name, _ in model.named_parameters()], gradient, strict=True)
    step = {name: each * mask.layers.get(name, torch.ones_like(each)) for name, each in named}
    length = sum(float(each.square().sum()) for each in step.values()) ** 0.5
    moved = {name: each.detach() + 0.05 * step[name] / length for name, each in model.named_parameters()}
    high = F.cross_entropy(torch.func.functional_call(model, moved, (data()[0],)), data()[1])
    low = F.cross_entropy(model(data()[0]), data()[1])
    assert inside.value == pytest.approx(float(high - low), rel=1e-9)
    pieces = sharpness(model, F.cross_entropy, data(), mask, chunk=7)
    assert pieces.value == pytest.approx(inside.value, rel=1e-9)


def test_sharpness_where_there_is_none() -> None:
    flat = Quadratic(torch.zeros(3, 3, dtype=torch.float64))
    assert sharpness(flat, mean, NOTHING).value == 0
    assert math.isnan(sharpness(Quadratic(symmetric(3, 0) * math.nan), mean, NOTHING).value)
    with pytest.raises(UserError, match="rho = 0"):
        sharpness(flat, mean, NOTHING, rho=0)
