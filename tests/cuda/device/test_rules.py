"""The pretended GPU keeps CUDA's rules, so that what breaks on it would break on a GPU."""

from __future__ import annotations

import copy

import pretended_cuda as pretended
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

GPU = torch.device("cuda", 0)


def test_one_device() -> None:
    x = torch.ones(3, device=GPU)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3, device="cuda:1")
    assert (x + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]  # a number may come from the CPU
    assert x[torch.tensor([0, 2])].device == GPU  # and so may an index
    with pytest.raises(RuntimeError):
        torch.ones(3)[torch.tensor([0, 2], device=GPU)]
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_current_device() -> None:
    torch.cuda.set_device(1)
    try:
        assert torch.cuda.current_device() == 1
        assert torch.ones(1, device="cuda").device == torch.device("cuda", 1)
    finally:
        torch.cuda.set_device(0)
    assert torch.ones(1).to("cuda").device == GPU


def test_generator() -> None:
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=GPU, generator=torch.Generator())
    drawn = [torch.rand(3, device=GPU, generator=torch.Generator(GPU).manual_seed(each)) for each in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_deterministic_mode() -> None:
    x = torch.ones(2, 3, 4, device=GPU)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="cumsum"):
            x.cumsum(0)
        with pytest.raises(RuntimeError, match="nll_loss2d"):
            F.cross_entropy(x, torch.zeros(2, 4, dtype=torch.int64, device=GPU))
        assert x.long().cumsum(0).sum() == 36
    finally:
        torch.use_deterministic_algorithms(False)


def test_training_equals_the_cpu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    other = copy.deepcopy(model).to(GPU)
    assert copy.deepcopy(other)[0].weight.device == GPU
    x, y = torch.randn(5, 3, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    for each, device in ((model, "cpu"), (other, GPU)):
        F.cross_entropy(each(x.to(device)), y.to(device)).backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert two.grad is not None
        assert torch.equal(one.grad, two.grad.cpu())


def test_autocast_and_vmap() -> None:
    models = [nn.Linear(3, 2).to(GPU) for _ in range(2)]
    parameters, buffers = stack_module_state(models)
    x = torch.ones(4, 3, device=GPU)
    stacked = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    assert torch.allclose(stacked[1], models[1](x))
    with torch.autocast("cuda", torch.bfloat16):
        assert models[0](x).dtype == torch.bfloat16


def test_syncs_and_launches_are_counted() -> None:
    x = torch.ones(4, device=GPU)
    with pretended.Operations() as seen:
        y = (x + 1).view(2, 2)
        float(y.sum())
        y.cpu()
        x[x > 0]
        torch.ones(2).to(GPU)
    assert dict(seen.launches).keys() >= {"aten::add", "aten::sum"}
    assert "aten::view" not in seen.launches
    assert [line.rpartition(" ")[0] for line in seen.syncs] == [
        "aten::_local_scalar_dense",
        "cuda to cpu",
        "boolean index",
        "cpu to cuda",
    ]


def test_graph() -> None:
    model, x = nn.Linear(3, 1).to(GPU), torch.randn(5, 3, device=GPU)
    weights = model.weight.detach().clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.weight.grad = None
        model(x).square().mean().backward()
        with torch.no_grad():
            model.weight -= 0.1 * model.weight.grad
    assert torch.equal(model.weight, weights)  # a capture runs nothing
    by_hand = copy.deepcopy(model)
    for _ in range(3):
        graph.replay()
        by_hand.weight.grad = None
        by_hand(x).square().mean().backward()
        with torch.no_grad():
            by_hand.weight -= 0.1 * by_hand.weight.grad
    assert torch.equal(model.weight, by_hand.weight)
    assert not torch.equal(model.weight, weights)
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        float(x.sum())
