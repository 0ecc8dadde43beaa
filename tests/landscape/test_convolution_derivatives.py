"""Second derivatives of convolutions: torch's own and finite differences in float64; calls that stay torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hessian_problems import exact
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from regimes.landscape.convolution_derivatives import FastConvolutionDerivatives
from regimes.landscape.hessian_operator import HessianOperator

Form = tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], dict[str, Any]]
FORMS: dict[str, Form] = {  # function, shapes of inputs and weights, options
    "1d": (F.conv1d, (2, 3, 7), (4, 3, 3), {}),
    "1d, strided and padded": (F.conv1d, (2, 3, 8), (4, 3, 3), {"stride": 2, "padding": 1}),
    "2d": (F.conv2d, (2, 3, 5, 6), (4, 3, 3, 2), {}),
    "2d, 1x1, stride 2": (F.conv2d, (2, 3, 5, 5), (4, 3, 1, 1), {"stride": 2}),
    "2d, one number in a list": (F.conv2d, (2, 3, 5, 6), (4, 3, 3, 3), {"stride": [2], "padding": [1]}),
    "2d, numbers of NumPy": (F.conv2d, (2, 3, 6, 6), (4, 3, 3, 3), {"stride": np.int64(2), "padding": np.int64(1)}),
    "2d, a number for each dimension": (
        F.conv2d, (2, 2, 7, 8), (2, 2, 3, 2), {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
    ),
    "2d, stride leaves pixels over": (F.conv2d, (2, 2, 6, 6), (2, 2, 3, 3), {"stride": 2}),
    "2d, groups": (F.conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "2d, depthwise": (F.conv2d, (2, 4, 5, 5), (4, 1, 3, 3), {"groups": 4}),
    "2d, dilated": (F.conv2d, (2, 2, 7, 7), (3, 2, 3, 3), {"dilation": 2, "padding": 2}),
    "2d, same": (F.conv2d, (2, 2, 5, 5), (3, 2, 3, 3), {"padding": "same", "dilation": 2}),
    "2d, same, even kernel": (F.conv2d, (2, 2, 5, 4), (3, 2, 2, 4), {"padding": "same"}),
    "2d, valid": (F.conv2d, (2, 2, 5, 5), (3, 2, 3, 3), {"padding": "valid", "stride": 2}),
    "2d, unbatched": (F.conv2d, (2, 5, 5), (3, 2, 3, 3), {"padding": "same"}),
    "3d": (F.conv3d, (2, 2, 4, 3, 4), (3, 2, 2, 3, 2), {"padding": 1}),
    "3d, groups and strides": (F.conv3d, (1, 4, 4, 4, 4), (4, 2, 2, 2, 2), {"groups": 2, "stride": (1, 2, 2)}),
    "1d, transposed": (F.conv_transpose1d, (2, 3, 4), (3, 2, 3), {"stride": 2, "output_padding": 1}),
    "2d, transposed": (F.conv_transpose2d, (2, 4, 3, 4), (4, 3, 3, 2), {"stride": (2, 1), "padding": 1}),
    "2d, transposed, groups": (F.conv_transpose2d, (2, 4, 3, 3), (4, 2, 2, 2), {"groups": 2, "dilation": 2}),
    "3d, transposed, unbatched": (F.conv_transpose3d, (2, 3, 2, 3), (2, 3, 2, 2, 2), {}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions are replaced, too."""
    monkeypatch.setattr("regimes.landscape.convolution_derivatives.MIN_CPU_MULTIPLICATIONS", 0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def nodes(output: Tensor) -> Iterator[str]:
    """Names of the nodes of an output's autograd graph."""
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            yield node.name()
            waiting += [each for each, _ in node.next_functions]


def replaced(output: Tensor) -> bool:
    """Whether an output is from a replaced convolution (and not from one of torch's)."""
    found = set(nodes(output))
    assert ("ConvolutionBackward0" in found) != ("_ConvolutionBackward" in found)
    return "_ConvolutionBackward" in found


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_products_are_torchs(name: str, biased: bool) -> None:
    """The products of the Hessian of ``sum sin(y)``, one by one and batched."""
    function, of_x, of_w, options = FORMS[name]
    channels = of_w[1] * options.get("groups", 1) if "transposed" in name else of_w[0]
    leaves = [draw(*of_x), draw(*of_w, seed=1), *([draw(channels, seed=2)] if biased else [])]
    vectors = [draw(3, *each.shape, seed=5 + i).detach() for i, each in enumerate(leaves)]
    found = []
    for mode in (nullcontext, FastConvolutionDerivatives):
        with mode():
            y = function(*leaves, **options)
            gradient = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        assert replaced(y) == (mode is FastConvolutionDerivatives)
        single = [
            torch.autograd.grad(gradient, leaves, [each[k] for each in vectors], retain_graph=True) for k in range(3)
        ]
        batched = torch.autograd.grad(gradient, leaves, vectors, is_grads_batched=True)
        found.append((y, *gradient, *(torch.stack(each) for each in zip(*single, strict=True)), *batched))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FORMS)
def test_second_derivatives_are_finite_differences(name: str) -> None:
    function, of_x, of_w, options = FORMS[name]

    def replacement(x: Tensor, w: Tensor) -> Tensor:
        with FastConvolutionDerivatives():
            return function(input=x, weight=w, **options)

    leaves = draw(*of_x), draw(*of_w, seed=1)
    torch.autograd.gradgradcheck(replacement, leaves, fast_mode=True, check_batched_grad=True)


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_argument_may_need_no_gradient(frozen: int) -> None:
    found = []
    for mode in (nullcontext, FastConvolutionDerivatives):
        leaves = [draw(2, 3, 5, 5), draw(4, 3, 3, 3, seed=1)]
        leaves[frozen].requires_grad_(False)
        live = leaves[1 - frozen]
        with mode():
            (gradient,) = torch.autograd.grad(F.conv2d(*leaves).sin().sum(), live, create_graph=True)
        found.append(torch.autograd.grad(gradient, live, draw(*live.shape, seed=3).detach()))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_third_and_fourth_derivatives_are_torchs() -> None:
    for function, of_x, of_w in ((F.conv2d, (2, 2, 5, 5), (3, 2, 3, 3)), (F.conv_transpose1d, (2, 2, 4), (2, 3, 3))):
        found = []
        for mode in (nullcontext, FastConvolutionDerivatives):
            x, w = draw(*of_x), draw(*of_w, seed=1)
            with mode():
                value = function(x, w).sin().sum()
                derivatives = []
                for leaf in (x, w, x, w):
                    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
                    derivatives.append(slope)
                    value = (slope * draw(*leaf.shape, seed=len(derivatives)).detach()).sum()
            found.append(derivatives)
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


# -- networks ---------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two convolutions and a linear layer, called in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular", stride=2)
        self.b = nn.Conv2d(2, 3, 2, padding="same", bias=False)
        self.head = nn.Linear(3, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(torch.tanh(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "checkpoint":
            y = checkpoint(self.hidden, x, use_reentrant=False)
        elif self.way == "vmap":
            y = torch.func.vmap(self.hidden)(x)
        elif self.way == "per-input gradients":
            y = 9 * torch.func.vmap(torch.func.grad(lambda each: self.hidden(each).sum()))(x).expand(-1, 3, -1, -1)
        elif self.way == "gradient":
            x = x.detach().requires_grad_()
            y = torch.autograd.grad(self.hidden(x).square().sum(), x, create_graph=True)[0].expand(-1, 3, -1, -1)
        elif self.way == "jvp":
            y = torch.func.jvp(self.hidden, (x,), (x.flip(0),))[1]
        elif self.way == "jvp of a gradient":
            slope = torch.func.grad(lambda each: self.hidden(each).square().sum())
            y = torch.func.jvp(slope, (x,), (x.flip(0),))[1].expand(-1, 3, -1, -1)
        elif self.way == "dual numbers":
            with forward_ad.dual_level():
                y = forward_ad.unpack_dual(self.hidden(forward_ad.make_dual(x, x.flip(0)))).tangent
        else:
            y = self.hidden(x)
        found: Tensor = self.head(y.square().mean((2, 3)))
        return found


WAYS = ["plain", "checkpoint", "vmap", "per-input gradients", "gradient", "jvp", "jvp of a gradient", "dual numbers"]


@pytest.mark.parametrize("way", WAYS)
def test_operator_is_the_brute_force_hessian(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small(way).double()
    inputs = draw(5, 1, 6, 6, seed=4).detach(), torch.arange(5) % 3
    eye = torch.eye(sum(each.numel() for each in model.parameters()), dtype=torch.float64)
    found = [HessianOperator(model, F.cross_entropy, inputs, vectors_per_pass=k).matmat(eye) for k in (1, 16)]
    if way == "plain":
        truth = exact(model, inputs)
    else:  # not every way has the batched form that `exact` takes
        monkeypatch.setattr("regimes.landscape.hessian_operator.FastConvolutionDerivatives", nullcontext)
        truth = HessianOperator(model, F.cross_entropy, inputs, vectors_per_pass=1).matmat(eye)
    assert float(truth.norm()) > 1e-3
    for hessian in found:
        torch.testing.assert_close(hessian, truth, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(hessian, hessian.T, rtol=1e-9, atol=1e-12)


# -- calls that stay torch's own --------------------------------------------------------------------------------------


def test_other_calls_are_torchs_own() -> None:
    x, w = draw(2, 3, 5, 5), draw(4, 3, 3, 3, seed=1)
    with FastConvolutionDerivatives():
        assert replaced(F.conv2d(x, w))
        assert replaced(torch.conv2d(x, w, stride=2))
        assert not replaced(F.conv2d(x.to(torch.complex128), w.to(torch.complex128)))
        with torch.autocast("cpu", torch.bfloat16):
            assert F.conv2d(x.float(), w.float()).dtype == torch.bfloat16
            assert not replaced(F.conv2d(x.float(), w.float()))
        with torch.no_grad():
            assert torch.equal(F.conv2d(x, w), torch.convolution(x, w, None, [1] * 2, [0] * 2, [1] * 2, False, [0], 1))
        assert F.conv2d(torch.ones(1, 1, 3, 3).long(), torch.ones(1, 1, 2, 2).long()).flatten().tolist() == [4] * 4


def test_small_ones_are_torchs_own_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.landscape.convolution_derivatives.MIN_CPU_MULTIPLICATIONS", 2 * 25 * 12 * 27)
    with FastConvolutionDerivatives():
        assert replaced(F.conv2d(draw(2, 3, 5, 5), draw(12, 3, 3, 3)))
        assert not replaced(F.conv2d(draw(2, 3, 5, 5), draw(11, 3, 3, 3)))
        assert not replaced(F.conv2d(draw(3, 5, 5), draw(12, 3, 3, 3)))
        assert replaced(F.conv2d(draw(2, 4, 5, 5), draw(4, 2, 3, 3), groups=2))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.conv2d(x[0, 0], w),
        lambda x, w: F.conv2d(x, w[0]),
        lambda x, w: F.conv2d(x, w.float()),
        lambda x, w: F.conv2d(x, w, padding="same", stride=2),
        lambda x, w: F.conv2d(x, w, padding="full"),
        lambda x, w: F.conv2d(x, w, groups=2),
        lambda x, w: F.conv2d(x),
        lambda x, w: F.conv2d(x, w, pad=1),
    ],
)
def test_wrong_calls_raise_torchs_errors(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, w = draw(2, 3, 5, 5), draw(4, 3, 3, 3, seed=1)
    with pytest.raises((RuntimeError, TypeError)) as own:
        call(x, w)
    with FastConvolutionDerivatives(), pytest.raises(own.type) as other:
        call(x, w)
    assert str(other.value) == str(own.value)
