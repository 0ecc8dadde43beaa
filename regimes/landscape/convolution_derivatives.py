"""Convolutions whose second derivatives cost as little as their first derivatives."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
CONVOLUTIONS = {  # dimensions and arguments
    F.conv1d: (1, ARGUMENTS),
    F.conv2d: (2, ARGUMENTS),
    F.conv3d: (3, ARGUMENTS),
    F.conv_transpose1d: (1, TRANSPOSED_ARGUMENTS),
    F.conv_transpose2d: (2, TRANSPOSED_ARGUMENTS),
    F.conv_transpose3d: (3, TRANSPOSED_ARGUMENTS),
}
# Multiplications of a convolution on a CPU from which its second derivatives are faster than torch's (by 5 to 30 %); on
# smaller ones calls from Python cost more than is saved (up to 10 %, three-dimensional ones 20 %). Grouped ones are
# faster at any size (up to twice).
MIN_CPU_MULTIPLICATIONS = 2**25
convolution_backward = torch.ops.aten.convolution_backward.default


class FastConvolutionDerivatives(TorchFunctionMode):
    """Context manager in which second derivatives of convolutions are computed as first derivatives of convolutions.

    A convolution ``y = x * w`` is linear in both arguments. Let ``X(g, w)`` and ``W(g, x)`` be its gradients in x and w
    for an output gradient g. For directions a of X and b of W,

    ``<a, X(g, w)> + <b, W(g, x)> = <g, a * w + x * b>``,

    whose gradients are ``a * w + x * b`` in g, ``X(g, b)`` in x and ``W(g, a)`` in w. torch computes the last of them
    as a convolution with kernels as large as the images, which takes most of the time of a Hessian-vector product on a
    GPU. Enter the context for the forward pass and for the gradient that is differentiated again.

    It applies to convolutions and transposed convolutions of one to three dimensions, as functions and as layers.
    Other calls remain torch's own: without gradients, in forward mode, under autocast, of complex numbers or tensor
    subclasses, in TorchScript, and on a CPU small ones (`MIN_CPU_MULTIPLICATIONS`).
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS and not types:
            dimensions, names = CONVOLUTIONS[func]
            call: dict[str, Any] = DEFAULTS | dict(zip(names, args, strict=False)) | kwargs
            if _supported(call, dimensions) and _faster(call, dimensions):
                return _convolve(call, dimensions, names is TRANSPOSED_ARGUMENTS)
        return func(*args, **kwargs)


class _Convolution(torch.autograd.Function):
    """A convolution whose derivative is `_Gradients`; ``settings`` from stride to groups, as in `torch.convolution`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        return torch.convolution(x, w, bias, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.settings = inputs[3:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        gradients = _Gradients.apply if torch.is_grad_enabled() else _Gradients.forward  # `apply` has a cost
        of_x, of_w = gradients(g, x, w, ctx.needs_input_grad[:2], *ctx.settings)
        of_bias = g.sum((0, *range(2, g.dim()))) if ctx.needs_input_grad[2] else None
        return (of_x, of_w, of_bias, *(None for _ in ctx.settings))


class _Gradients(torch.autograd.Function):
    """Gradients of a convolution in x and in w, each None unless ``wanted``, for an output gradient g."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor, w: Tensor, wanted: Sequence[bool], *settings: Any) -> tuple[Tensor | None, ...]:
        found: tuple[Tensor | None, ...] = convolution_backward(g, x, w, None, *settings, [*wanted, False])
        return found[:2]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.settings = inputs[4:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, w = ctx.saved_tensors
        by_g, by_x, by_w = ctx.needs_input_grad[:3]
        parts, of_x, of_w = [], None, None
        if a is not None and by_g:
            parts.append(torch.convolution(a, w, None, *ctx.settings))
        if b is not None and by_g:
            parts.append(torch.convolution(x, b, None, *ctx.settings))
        if b is not None and by_x:
            of_x = convolution_backward(g, x, b, None, *ctx.settings, [True, False, False])[0]
        if a is not None and by_w:
            of_w = convolution_backward(g, a, w, None, *ctx.settings, [False, True, False])[1]
        return (reduce(torch.add, parts) if parts else None, of_x, of_w, None, *(None for _ in ctx.settings))


def _supported(call: dict[str, Any], dimensions: int) -> bool:
    """Whether the arguments are such as torch accepts, and have derivatives by reverse mode only."""
    x, w, padding = (call.get(name) for name in ("input", "weight", "padding"))
    return (
        isinstance(x, Tensor)
        and isinstance(w, Tensor)
        and x.dtype == w.dtype
        and x.is_floating_point()
        and w.dim() == dimensions + 2
        and x.dim() in (dimensions + 1, dimensions + 2)
        and call.keys() == {*TRANSPOSED_ARGUMENTS}
        and (padding != "same" or set(_each(call["stride"], dimensions)) == {1})
        and (not isinstance(padding, str) or padding in ("same", "valid"))
        and torch.is_grad_enabled()
        and (x.requires_grad or w.requires_grad)
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled(x.device.type)
    )


def _faster(call: dict[str, Any], dimensions: int) -> bool:
    """Whether second derivatives are faster than torch's."""
    x, w = call["input"], call["weight"]
    positions = x.numel() // max(1, x.shape[-1 - dimensions])
    return x.device.type != "cpu" or call["groups"] > 1 or positions * w.numel() >= MIN_CPU_MULTIPLICATIONS


def _convolve(call: dict[str, Any], dimensions: int, transposed: bool) -> Tensor:
    x, w, padding = call["input"], call["weight"], call["padding"]
    stride, dilation, output_padding = (
        _each(call[name], dimensions) for name in ("stride", "dilation", "output_padding")
    )
    batch = x if x.dim() == w.dim() else x[None]
    if isinstance(padding, str):
        both = [each * (size - 1) if padding == "same" else 0 for each, size in zip(dilation, w.shape[2:], strict=True)]
        padding = [each // 2 for each in both]
        if any(each % 2 for each in both):  # one more at the end
            batch = F.pad(batch, [side for each in reversed(both) for side in (0, each % 2)])
    settings = (stride, _each(padding, dimensions), dilation, transposed, output_padding, call["groups"])
    y: Tensor = _Convolution.apply(batch, w, call["bias"], *settings)
    return y if x.dim() == w.dim() else y[0]


def _each(value: Any, dimensions: int) -> list[int]:
    """A setting of every dimension."""
    try:
        return [operator.index(value)] * dimensions
    except TypeError:  # a sequence
        values = [operator.index(each) for each in value]
    return values * dimensions if len(values) == 1 else values
