"""Hessian products of PreResNet-20 by other second derivatives of convolutions, and forward passes."""

import torch
import torch.nn.functional as F
from preresnet20 import LAYOUTS, clock, data, device, network, row, say
from torch.func import functional_call, grad, jvp, vmap

aten = torch.ops.aten


class Backward(torch.autograd.Function):
    """The backward pass of a convolution, whose own derivative is made of convolutions' backward passes again.

    torch's makes the gradient of the weights a convolution with kernels as large as the images.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(g, x, w, *rest):
        stride, padding, dilation, groups = rest
        mask = [True, True, False]
        return aten.convolution_backward(g, x, w, None, stride, padding, dilation, False, [0, 0], groups, mask)[:2]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])
        ctx.rest = inputs[3:]

    @staticmethod
    def backward(ctx, to_x, to_w):
        g, x, w = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.rest

        def forward(a, b):
            return aten.convolution(a, b, None, stride, padding, dilation, False, [0, 0], groups)

        def back(a, b, c, mask):
            return aten.convolution_backward(a, b, c, None, stride, padding, dilation, False, [0, 0], groups, mask)

        of_x, of_w = back(g, x, to_w, [True, False, False])[0], back(g, to_x, w, [False, True, False])[1]
        return forward(to_x, w) + forward(x, to_w), of_x, of_w, None, None, None, None


class Convolution(torch.autograd.Function):
    """A convolution with `Backward` as its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w, *rest):
        stride, padding, dilation, groups = rest
        return aten.convolution(x, w, None, stride, padding, dilation, False, [0, 0], groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = inputs[2:]

    @staticmethod
    def backward(ctx, g):
        return (*Backward.apply(g, *ctx.saved_tensors, *ctx.rest), None, None, None, None)


class Convolutions(torch.overrides.TorchFunctionMode):
    """While it is on, two-dimensional convolutions are `Convolution`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.conv2d or kwargs:
            return func(*args, **(kwargs or {}))
        x, w, bias, stride, padding, dilation, groups = (*args, *(None, 1, 0, 1, 1)[len(args) - 2 :])
        pairs = [list(each) if isinstance(each, (tuple, list)) else [each] * 2 for each in (stride, padding, dilation)]
        y = Convolution.apply(x, w, *pairs, groups)
        return y if bias is None else y + bias.view(1, -1, 1, 1)


def products(model, x, y, layout):
    weights = list(model.parameters())
    vector = [torch.randn_like(each) for each in weights]
    eight = [torch.randn(8, *each.shape, device=device) for each in weights]
    found = []
    for name in ("torch's", "own"):
        with Convolutions() if name == "own" else torch.enable_grad():
            gradient = torch.autograd.grad(F.cross_entropy(model(x), y), weights, create_graph=True)

        def one(gradient=gradient):
            return torch.autograd.grad(gradient, weights, vector, retain_graph=True)

        def many(gradient=gradient):
            return torch.autograd.grad(gradient, weights, eight, retain_graph=True, is_grads_batched=True)

        found.append(torch.cat([each.flatten() for each in one()]))
        about = {"convolutions": name, "layout": layout}
        row("Hessian product", lambda work=one: clock(work, warm=2, steps=5), **about)
        row("eight at once, each", lambda work=many: clock(work, 8, warm=2, steps=2), **about)
    named = {name: each.detach() for name, each in model.named_parameters()}

    def loss(p):
        return F.cross_entropy(functional_call(model, p, (x,)), y)

    def forward(tangent):
        return jvp(grad(loss), (named,), (dict(zip(named, tangent, strict=True)),))[1]

    found.append(torch.cat([each.flatten() for each in forward(vector).values()]))
    row("jvp of grad", lambda: clock(lambda: forward(vector), warm=2, steps=5), layout=layout)
    row("vmap of jvp of grad, eight, each", lambda: clock(lambda: vmap(forward)(eight), 8, 2, 2), layout=layout)
    say(relative_differences=[float((each - found[0]).norm() / found[0].norm()) for each in found[1:]])


for layout, form in LAYOUTS.items():
    model, (x, y) = network().to(device, memory_format=form).eval(), data(layout)
    products(model, x, y, layout)
    for count in (128, 1024, 5625) if device.type == "cuda" else (128,):
        inputs, _ = data(layout, count)
        for bf16 in (False, True):

            def forward(inputs=inputs, bf16=bf16, model=model):
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    return model(inputs)

            row("forward", lambda work=forward: clock(work, warm=2, steps=5), images=count, layout=layout, bf16=bf16)
