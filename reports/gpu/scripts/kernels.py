"""Which kernels a training step spends its time in, and how fast cuDNN's convolutions are at each shape."""

import torch
import torch.nn.functional as F
from preresnet20 import LAYOUTS, Lane, args, captured, clock, cuda, data, device, network, row, say


def table(name, work, top=16):
    """The kernels of one call by device time in microseconds."""
    for _ in range(3):
        work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    found = {}
    for each in seen.events():
        if each.device_type == torch.autograd.DeviceType.CUDA:
            count, time = found.get(each.name[:110], (0, 0.0))
            found[each.name[:110]] = (count + 1, time + each.device_time)
    rows = sorted(found.items(), key=lambda item: -item[1][1])
    count, busy = sum(n for n, _ in found.values()), sum(t for _, t in found.values())
    say(
        profile=name, kernels=count, busy_ms=round(busy / 1e3, 3), top=[[k, n, round(t, 1)] for k, (n, t) in rows[:top]]
    )


def settings(benchmark=False, tf32=False):
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32


def convolution(cin, cout, side, stride, dtype, layout):
    """Forward, gradient of the inputs, gradient of the weights, each as a graph."""
    form = LAYOUTS[layout]
    x = torch.randn(args.batch, cin, side, side, device=device, dtype=dtype).contiguous(memory_format=form)
    w = torch.randn(cout, cin, 3, 3, device=device, dtype=dtype).contiguous(memory_format=form)
    y = F.conv2d(x, w, stride=stride, padding=1)
    g, pair = torch.randn_like(y), [1, 1]

    def back(mask):
        return torch.ops.aten.convolution_backward(g, x, w, None, [stride] * 2, pair, pair, False, [0, 0], 1, mask)

    works = (
        lambda: F.conv2d(x, w, stride=stride, padding=1),
        lambda: back([True, False, False]),
        lambda: back([False, True, False]),
    )
    return [round(1e3 * clock(captured(work), warm=5), 1) for work in works]


KINDS = [(bf16, layout) for bf16 in (True, False) for layout in LAYOUTS]
for bf16, layout in KINDS if cuda else []:
    table(f"step, bf16 {bf16}, {layout}", Lane(bf16, layout=layout).step)
for batch in (128, 512):
    for bf16, layout in KINDS:
        for benchmark, tf32 in ((False, False), (True, False), (False, True)):
            settings(benchmark, tf32)
            about = {"batch": batch, "bf16": bf16, "layout": layout, "benchmark": benchmark, "tf32": tf32}
            work = lambda: clock(captured(Lane(bf16, layout=layout, batch=batch).step), warm=5)  # noqa: B023, E731
            row("a step alone, as a graph", work, **about)
for cin, cout, side, stride in ((3, 16, 32, 1), (16, 16, 32, 1), (16, 32, 32, 2), (32, 32, 16, 1), (64, 64, 8, 1)):
    for dtype in (torch.bfloat16, torch.float32):
        for layout in LAYOUTS:
            settings()
            found = convolution(cin, cout, side, stride, dtype, layout)
            say(
                row="3x3 convolution",
                cin=cin,
                cout=cout,
                side=side,
                stride=stride,
                dtype=str(dtype),
                layout=layout,
                us=found,
            )
settings()
if cuda:
    model, (x, y) = network().to(device, memory_format=torch.channels_last).eval(), data()
    weights = list(model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), weights, create_graph=True)
    vector = [torch.randn_like(each) for each in weights]
    table("Hessian product", lambda: torch.autograd.grad(gradient, weights, vector, retain_graph=True))
