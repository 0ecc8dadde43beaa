"""PreResNet-20 in plain PyTorch, its training step, and clocks: what the scripts beside this one share."""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--depth", type=int, default=20)
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--budget", type=float, default=120.0, help="seconds after which rows are left out")
args = parser.parse_args()
device, began = torch.device(args.device), time.perf_counter()
cuda = device.type == "cuda"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}


class Block(nn.Module):
    """Pre-activation block with a 1x1 convolution where the shape changes."""

    def __init__(self, i, o, s):
        super().__init__()
        self.b1, self.c1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, s, 1, bias=False)
        self.b2, self.c2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(i, o, 1, s, bias=False) if i != o or s != 1 else nn.Identity()

    def forward(self, x):
        return self.c2(F.relu(self.b2(self.c1(F.relu(self.b1(x)))))) + self.short(x)


def network(width=16):
    layers, i = [nn.Conv2d(3, width, 3, 1, 1, bias=False)], width
    for stage in range(3):
        for n in range((args.depth - 2) // 6):
            o = width << stage
            layers.append(Block(i, o, 2 if stage and not n else 1))
            i = o
    return nn.Sequential(*layers, nn.BatchNorm2d(i), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10))


def data(layout="nhwc", batch=None):
    count = batch or args.batch
    x = torch.randn(count, 3, 32, 32, device=device).to(memory_format=LAYOUTS[layout])
    return x, torch.randint(0, 10, (count,), device=device)


def loss_of(model, x, y, bf16):
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return F.cross_entropy(model(x).float(), y)


compiled_loss = torch.compile(loss_of)  # a free function: one compilation serves the modules of all lanes


class Lane:
    """One network with its own step; everything it needs stands on the device."""

    def __init__(self, bf16=True, compiled=False, fused_sgd=False, layout="nhwc", batch=None):
        self.model = network().to(device, memory_format=LAYOUTS[layout]).train()
        kind = {"fused": True} if fused_sgd else {"foreach": True}
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, **kind)
        self.x, self.y = data(layout, batch)
        self.bf16, self.loss = bf16, compiled_loss if compiled else loss_of

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.model, self.x, self.y, self.bf16).backward()
        self.optimizer.step()

    def graph(self, stream):
        with torch.cuda.stream(stream):
            for _ in range(4):
                self.step()
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            self.step()
        return captured


def say(**row):
    print(json.dumps(row), flush=True)


def clock(work, models=1, warm=10, steps=None):
    """Milliseconds of one call for each of its models: by events on a card, else by the wall clock."""
    steps = steps or args.steps
    for _ in range(warm if cuda else 1):
        work()
    if cuda:
        torch.cuda.synchronize()
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        for _ in range(steps):
            work()
        b.record()
        torch.cuda.synchronize()
        return a.elapsed_time(b) / steps / models
    start = time.perf_counter()
    for _ in range(steps):
        work()
    return 1e3 * (time.perf_counter() - start) / steps / models


def captured(work):
    """The work as a graph where there is a card: its kernels alone, no launches."""
    if not cuda:
        return work
    work()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph.replay


def row(name, work, key="ms", **about):
    """Do the work and print its number; an error is a row, too."""
    if time.perf_counter() - began > args.budget:
        say(row=name, skipped="budget", **about)
        return
    try:
        say(row=name, **about, **{key: round(work(), 4)})
    except Exception as error:
        say(row=name, **about, error=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    if cuda:
        torch.cuda.empty_cache()


if cuda:
    say(card=torch.cuda.get_device_name(), torch=torch.__version__, cudnn=torch.backends.cudnn.version())
else:
    say(card="cpu", torch=torch.__version__)
