"""The Hessian in two parts: brute force in float64, what is not assumed, and errors that cover the truth."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimes import Estimate, UserError, hessian_trace
from regimes.landscape.gauss_newton_split import GaussNewtonSplit, NotSplittable
from regimes.landscape.metric import LossFn
from regimes.models.build import build
from regimes.pruners.mask import Mask
from regimes.pruners.prune import prune


def data(count: int = 24, classes: int = 3, size: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 1, size, size, dtype=torch.float64, generator=random)
    return inputs, torch.randint(0, classes, (count,), generator=random)


def smooth(activation: type[nn.Module] = nn.Tanh, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(36, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, classes)
        ).double()


def built(name: str) -> nn.Module:
    options = {"mlp": {"widths": [6], "batch_norm": True}, "preresnet": {"depth": 8, "width": 2}}[name]
    model = build(name, options, (1, 6, 6), 3, 0).double()
    model(data()[0])  # BatchNorm statistics of its own
    return model


def brute(
    model: nn.Module, loss_fn: LossFn, mask: Mask | None = None, on: tuple[Tensor, Tensor] | None = None
) -> tuple[float, float]:
    """tr H and tr G from whole matrices."""
    model.eval()
    inputs, targets = on or data()
    weights = {name: each.detach() for name, each in model.named_parameters()}
    live = torch.cat(
        [
            (mask.layers[name].double() if mask and name in mask.layers else torch.ones_like(each)).reshape(-1)
            for name, each in weights.items()
        ]
    )
    flat = torch.cat([each.reshape(-1) for each in weights.values()])

    def out(vector: Tensor) -> Tensor:
        parts = vector.split([each.numel() for each in weights.values()])
        shaped = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
        return functional_call(model, shaped, (inputs,))

    with sdpa_kernel(SDPBackend.MATH):
        H = torch.autograd.functional.hessian(lambda vector: loss_fn(out(vector), targets), flat)
        J = jacrev(out)(flat)  # (n, k, weights)
    assert isinstance(H, Tensor)
    A = vmap(hessian(lambda o, y: loss_fn(o[None], y[None])))(out(flat), targets)
    G = torch.einsum("nkw,nkl,nlw->w", J, A, J) / len(inputs)
    return float(H.diagonal() @ live), float(G @ live)


@pytest.mark.parametrize("name", ["mlp", "preresnet"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_relu_network_has_the_trace_of_gauss_newton(name: str, masked: bool) -> None:
    model = built(name)
    mask = prune(model, 0.4) if masked else None
    if mask:
        mask.apply(model)
    whole, gauss = brute(model, F.cross_entropy, mask)
    split = GaussNewtonSplit(model, F.cross_entropy, data(), mask)
    assert split.rest_has_zero_diagonal()
    assert gauss == pytest.approx(whole, rel=1e-10)
    assert float(split.exact().sum(dim=1).mean()) == pytest.approx(whole, rel=1e-10)
    assert hessian_trace(model, F.cross_entropy, data(), mask, rel_stderr=1e-9).value == pytest.approx(whole, rel=1e-10)
    assert hessian_trace(model, F.cross_entropy, data(), mask).stderr <= 0.03 * whole  # without a word: to 3 %


def one_hot_error(answers: Tensor, targets: Tensor) -> Tensor:
    return (answers - torch.eye(3, dtype=torch.float64)[targets]).square().sum(dim=1).mean()


def smoothed(answers: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(answers, targets, label_smoothing=0.1)


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, one_hot_error, smoothed])
def test_a_smooth_network_needs_the_rest_as_well(loss_fn: LossFn) -> None:
    model = smooth()
    whole, gauss = brute(model, loss_fn)
    split = GaussNewtonSplit(model, loss_fn, data())
    assert abs(whole - gauss) > 0.005 * abs(whole)  # otherwise this test could not tell
    assert not split.rest_has_zero_diagonal()
    assert float(split.exact().sum(dim=1).mean()) == pytest.approx(gauss, rel=1e-10)
    eye = torch.eye(split.rest.size, dtype=torch.float64)
    assert float(split.rest.matmat(eye).diagonal().sum()) + gauss == pytest.approx(whole, rel=1e-8)
    trace = hessian_trace(model, loss_fn, data(), rel_stderr=0.02)
    assert trace.stderr <= 0.02 * abs(trace.value)
    assert abs(trace.value - whole) <= 4 * trace.stderr


def test_draws_are_unbiased_input_by_input() -> None:
    split = GaussNewtonSplit(built("mlp"), F.cross_entropy, data())
    random = torch.Generator().manual_seed(0)
    draws = torch.stack([split.draw(random) for _ in range(600)])
    off = (draws.mean(dim=0) - split.exact()) / (draws.std(dim=0) / 600**0.5 + 1e-12)
    assert float(off.abs().max()) < 4.5
    assert torch.equal(split.draw(torch.Generator().manual_seed(7)), split.draw(torch.Generator().manual_seed(7)))


def repeated(model: nn.Module, some: tuple[Tensor, Tensor], rel_stderr: float, times: int) -> list[Estimate]:
    """Traces of one network by as many generators, but for those that were taken exactly."""
    found = []
    for seed in range(times):
        random = torch.Generator().manual_seed(seed)
        found.append(
            hessian_trace(model, F.cross_entropy, some, rel_stderr=rel_stderr, generator=random, method="split")
        )
    return [each for each in found if each.stderr > 0]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_its_interval_covers_the_truth(activation: type[nn.Module]) -> None:
    model, some = smooth(activation, classes=8), data(40, classes=8)
    whole, _ = brute(model, F.cross_entropy, on=some)
    sampled = repeated(model, some, rel_stderr=0.06, times=60)
    assert len(sampled) > 40  # the others took the exact trace
    assert sum(abs(each.value - whole) <= 1.96 * each.stderr for each in sampled) >= 0.9 * len(sampled)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Softplus, nn.Hardswish])
def test_flatness_is_looked_at_not_assumed(activation: type[nn.Module]) -> None:
    for dtype in (torch.float32, torch.float64):
        inputs, targets = data()
        assert not GaussNewtonSplit(
            smooth(activation).to(dtype), F.cross_entropy, (inputs.to(dtype), targets)
        ).rest_has_zero_diagonal()
        assert GaussNewtonSplit(
            smooth(nn.LeakyReLU).to(dtype), F.cross_entropy, (inputs.to(dtype), targets)
        ).rest_has_zero_diagonal()


def test_a_tensor_used_twice_is_seen() -> None:
    model = smooth(nn.ReLU)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.again = model, nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.relu(self.inner(inputs) @ self.again) @ self.again

    twice = Twice()
    assert not GaussNewtonSplit(twice, F.cross_entropy, data()).rest_has_zero_diagonal()
    whole, _ = brute(twice, F.cross_entropy)
    trace = hessian_trace(twice, F.cross_entropy, data(), rel_stderr=0.02)
    assert abs(trace.value - whole) <= 4 * trace.stderr + 1e-9


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = smooth(nn.ReLU)

    def forward(self, inputs: Tensor) -> Tensor:
        answers: Tensor = self.inner(inputs)
        return answers - answers.mean(dim=0)


@pytest.mark.parametrize(
    ("model", "loss_fn", "why"),
    [
        (smooth(), lambda answers, targets: F.cross_entropy(answers, targets) ** 2, "not a mean of per-input losses"),
        (smooth(), lambda answers, targets: answers.cos().mean(), "not convex"),
        (smooth(), lambda answers, targets: answers.mean() * math.nan, "not finite"),
        (Mixing(), F.cross_entropy, "other inputs"),
    ],
)
def test_what_does_not_split_is_measured_as_a_whole(model: nn.Module, loss_fn: LossFn, why: str) -> None:
    with pytest.raises(NotSplittable, match=why):
        GaussNewtonSplit(model, loss_fn, data())
    with pytest.raises(UserError, match=f"method = 'split': .*{why}"):
        hessian_trace(model, loss_fn, data(), method="split")
    trace = hessian_trace(model, loss_fn, data(), rel_stderr=0.03)
    assert trace == hessian_trace(model, loss_fn, data(), rel_stderr=0.03, method="xtrace") or math.isnan(trace.value)


def test_chunks_bound_memory_and_change_nothing() -> None:
    model = built("preresnet")
    one, many = (GaussNewtonSplit(model, F.cross_entropy, data(), chunk=chunk).exact() for chunk in (0, 5))
    assert torch.allclose(one, many)


def test_a_loss_that_is_nearly_zero_splits_as_well() -> None:
    model = smooth(nn.ReLU).float()
    with torch.no_grad():
        model[-1].weight.mul_(3000)  # type: ignore[operator, union-attr]
        targets = model(data()[0].float()).argmax(dim=1)
        some = data()[0].float(), targets
        assert 0 < float(F.cross_entropy(model(some[0]), targets)) < 5e-2
    trace = hessian_trace(model, F.cross_entropy, some, rel_stderr=1e-6, method="split")
    whole, _ = brute(model.double(), F.cross_entropy, on=(some[0].double(), targets))
    assert trace.value == pytest.approx(whole, rel=1e-3)


def test_a_loss_with_tensors_of_its_own_splits() -> None:
    model = smooth(nn.ReLU).float()
    inputs, targets = data()
    centre = torch.tensor([0.1, 0.2, 0.3])

    def pulled(answers: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(answers @ torch.diag(centre), centre.expand(len(answers), -1))

    assert GaussNewtonSplit(model, pulled, (inputs.float(), targets)).columns == 3


# -- what a reviewer broke --------------------------------------------------------------------------------------------


def test_a_small_bend_beside_large_slopes_is_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(0.01 * torch.randn(each.shape, generator=random))
    x = torch.randn(64, 4, generator=random)
    targets = 1e4 * (1 + x[:, :1])
    assert not GaussNewtonSplit(model, F.mse_loss, (x, targets)).rest_has_zero_diagonal()


def test_few_live_coordinates_are_taken_one_by_one() -> None:
    model = smooth()
    masks = {name: torch.zeros(each.shape, dtype=torch.bool) for name, each in model.named_parameters()}
    masks["1.weight"][0, :2] = True
    mask = Mask(masks)
    whole, _ = brute(model, F.cross_entropy, mask)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        trace = hessian_trace(model, F.cross_entropy, data(), mask, 1e-6, random)
        assert trace.value == pytest.approx(whole, rel=1e-6)


def test_a_sum_is_no_mean_even_where_it_is_zero() -> None:
    model = smooth(nn.ReLU)
    own = model(data()[0]).detach()
    with pytest.raises(NotSplittable, match="not a mean of per-input losses"):
        GaussNewtonSplit(model, nn.MSELoss(reduction="sum"), (data()[0], own))


class Squeezed(nn.Module):
    """What is fine for a batch and not for one input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 1)).double()

    def forward(self, inputs: Tensor) -> Tensor:
        answers: Tensor = self.inner(inputs)
        return answers.squeeze()


def test_a_model_for_batches_only_is_measured_as_a_whole() -> None:
    def distance(answers: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(answers.view(-1), targets.double())

    model = Squeezed()
    auto = hessian_trace(model, distance, data(), rel_stderr=0.02)
    assert auto == hessian_trace(model, distance, data(), rel_stderr=0.02, method="xtrace")


def test_attention_is_differentiated_twice() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        model = nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(36, 3)).double()
    whole, _ = brute(model, F.cross_entropy)
    trace = hessian_trace(model, F.cross_entropy, data(), rel_stderr=0.02)
    assert abs(trace.value - whole) <= 4 * trace.stderr


def test_limits_and_kinds_that_cannot_be_meant_are_refused() -> None:
    model = smooth(nn.ReLU)
    for wrong in ({"rel_stderr": -0.1}, {"chunk": -1}, {"max_probes": 0}, {"rel_stderr": 0.1, "probes": 9}):
        with pytest.raises(UserError, match=r"allowed|at least|one of them"):
            hessian_trace(model, F.cross_entropy, data(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"call model.float\(\)"):
        hessian_trace(model.half(), F.cross_entropy, data())
    model.double()
    with pytest.raises(UserError, match="equally many inputs and targets"):
        hessian_trace(model, F.cross_entropy, (data()[0], data()[1][:5]))


def test_the_interval_is_honest_where_few_inputs_have_the_trace() -> None:
    model = smooth(nn.ReLU, classes=8).double()
    inputs, targets = data(60, classes=8)
    with torch.no_grad():
        model[-1].weight.mul_(8)  # type: ignore[operator, union-attr]
        right = model(inputs).argmax(dim=1)
    some = inputs, torch.where(torch.arange(60) < 3, targets, right)
    whole, _ = brute(model, F.cross_entropy, on=some)
    sampled = repeated(model, some, rel_stderr=0.2, times=100)
    assert len(sampled) > 50
    assert sum(abs(each.value - whole) <= 1.96 * each.stderr for each in sampled) >= 0.92 * len(sampled)
