"""Milliseconds a model-step of PreResNet-20 by several ways of training: ``python steps.py > steps.jsonl``."""

import torch
import torch.nn.functional as F
from preresnet20 import Lane, clock, cuda, data, device, network, row
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap


def matrix_rate():
    n = 8192 if cuda else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in "ab")
    return 2 * n**3 / clock(lambda: a @ b, warm=3) / 1e9


def bandwidth():
    a = torch.empty(2**30 if cuda else 2**24, device=device, dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * a.numel() / clock(lambda: b.copy_(a), warm=3) / 1e6


def eager(bf16, strict):
    torch.use_deterministic_algorithms(strict, warn_only=True)
    try:
        return clock(Lane(bf16).step)
    finally:
        torch.use_deterministic_algorithms(False)


def stacked(lanes, bf16):
    models = [network().to(device).train() for _ in range(lanes)]
    for part in (each for model in models for each in model.modules() if isinstance(each, nn.BatchNorm2d)):
        part.track_running_stats = False
        part.running_mean = part.running_var = part.num_batches_tracked = None
    params, _ = stack_module_state(models)
    x, y = data()
    momentum = {k: torch.zeros_like(v) for k, v in params.items()}

    def loss(p, x, y):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return F.cross_entropy(functional_call(models[0], p, (x,)).float(), y)

    step = vmap(grad(loss), in_dims=(0, None, None))

    def work():
        g = step(params, x, y)
        with torch.no_grad():
            for k in params:
                momentum[k].mul_(0.9).add_(g[k] + 1e-4 * params[k])
                params[k] = params[k] - 0.1 * momentum[k]

    return clock(work, lanes, warm=3)


def graphed(lanes, streams=8, strict=False, **about):
    torch.use_deterministic_algorithms(strict, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        pool = [torch.cuda.Stream() for _ in range(min(lanes, streams))]
        members = [Lane(**about) for _ in range(lanes)]
        graphs = [member.graph(pool[n % len(pool)]) for n, member in enumerate(members)]
    finally:
        torch.use_deterministic_algorithms(False)

    def work():
        here = torch.cuda.current_stream()
        for n, each in enumerate(graphs):
            stream = pool[n % len(pool)]
            if n < len(pool):
                stream.wait_stream(here)
            with torch.cuda.stream(stream):
                each.replay()
        for stream in pool:
            here.wait_stream(stream)

    return clock(work, lanes)


row("matrix product, bfloat16, 8192", matrix_rate, "TFLOP/s")
row("copy, read and written", bandwidth, "GB/s")
for bf16 in (False, True):
    for strict in (False, True):
        row("eager", lambda b=bf16, s=strict: eager(b, s), bf16=bf16, deterministic=strict)
for bf16 in (False, True):
    row("stacked by vmap", lambda b=bf16: stacked(8, b), lanes=8, bf16=bf16)
GRAPHS = [{"lanes": lanes, "bf16": bf16} for bf16 in (True, False) for lanes in (1, 4, 8, 16)]
GRAPHS += [
    {"lanes": 8, "bf16": True, "strict": True},
    {"lanes": 8, "bf16": True, "fused_sgd": True},
    {"lanes": 16, "bf16": True, "streams": 16},
    {"lanes": 32, "bf16": True, "streams": 16},
    {"lanes": 1, "bf16": True, "compiled": True},
    {"lanes": 8, "bf16": True, "compiled": True},
    {"lanes": 16, "bf16": True, "compiled": True, "fused_sgd": True},
    {"lanes": 16, "bf16": True, "compiled": True, "fused_sgd": True, "streams": 16},
    {"lanes": 8, "bf16": False, "compiled": True},
]
for about in GRAPHS if cuda else []:
    row("one CUDA graph a network", lambda a=about: graphed(**a), **about)
