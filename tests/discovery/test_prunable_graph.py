"""What a network can lose: found in any traced model, and counted as another library counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import KNOWN, images, network, some
from torch.utils.flop_counter import FlopCounterMode

from regimes.discovery.complexity import Complexity, size_of
from regimes.discovery.prunable_graph import PrunableGraph
from regimes.discovery.removal import remove
from regimes.discovery.trace_graph import trace_graph
from regimes.models.build import build


@pytest.mark.parametrize("name", KNOWN)
def test_units_and_blocks_are_found(name: str) -> None:
    *_, units, groups, blocks = KNOWN[name]
    anatomy = trace_graph(network(name), images(2))
    assert (len(anatomy.groups), len(anatomy.blocks)) == (groups, blocks)
    assert anatomy.units == units
    inside = {group.block for group in anatomy.groups if group.block is not None}
    assert inside <= set(range(blocks))


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "params", "macs"), [(20, 269_722, 40.55e6), (56, 853_018, 125.49e6), (110, 1_727_962, 252.89e6)]
)
def test_published_sizes_of_residual_networks(depth: int, params: int, macs: float) -> None:
    model = build("resnet", {"depth": depth}, (3, 32, 32), 10, 0)
    size = size_of(trace_graph(model, torch.randn(2, 3, 32, 32)))
    assert int(size.params) == params
    assert float(size.macs) == pytest.approx(macs, abs=5e3)


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_are_what_torch_counts(name: str) -> None:
    """Whole, and with units and blocks gone: torch's own counter of operations, and its parameters."""
    model, inputs = network(name), images(1)
    anatomy = trace_graph(model, images(2))
    units, blocks = some(anatomy, 5)
    for step in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(inputs)
        size = size_of(anatomy)
        assert int(size.macs) == counter.get_total_flops() // 2
        assert int(size.params) == sum(each.numel() for each in model.parameters())
        if not step:
            anatomy, _ = remove(model, anatomy, units, blocks, {})


def test_a_basic_block_costs_what_the_formula_says() -> None:
    """``rho (a sum theta + d)`` with ``a = 9 (c_in + c_out) + 2``, ``d = 2 c_out``, times 9 H W (c_in + c_out) MACs."""
    model = build("resnet", {"depth": 8, "width": 4}, (3, 16, 16), 10, 0)
    anatomy = trace_graph(model, torch.randn(2, 3, 16, 16))
    complexity = Complexity(anatomy)
    theta = torch.rand(anatomy.units, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rho = torch.tensor([0.3, 0.8, 0.5], dtype=torch.float64)
    found = complexity(theta, rho)
    stem, head = 27 * 4, 16 * 10
    params, macs = stem + 8 + head + 10.0, 16 * 16 * stem + float(head)
    for number, (c_in, c_out, side) in enumerate([(4, 4, 16), (4, 8, 8), (8, 16, 4)]):
        alive = float(theta[anatomy.groups[number].units].sum())
        a = 9 * (c_in + c_out)
        params += float(rho[number]) * ((a + 2) * alive + 2 * c_out)
        macs += float(rho[number]) * side * side * a * alive
    assert float(found.params) == pytest.approx(params, rel=1e-12)
    assert float(found.macs) == pytest.approx(macs, rel=1e-12)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(["vgg", "densenet", "preresnet"]))
def test_expected_size_is_the_mean_over_draws(seed: int, name: str) -> None:
    """It is linear in each gate alone, so its mean over two values of one gate is its value at the middle."""
    anatomy = (
        ANATOMIES[name] if name in ANATOMIES else ANATOMIES.setdefault(name, trace_graph(network(name), images(2)))
    )
    complexity = Complexity(anatomy)
    random = torch.Generator().manual_seed(seed)
    theta = torch.rand(anatomy.units, dtype=torch.float64, generator=random)
    rho = torch.rand(len(anatomy.blocks), dtype=torch.float64, generator=random)
    unit = int(torch.randint(anatomy.units, (1,), generator=random))
    ends = []
    for value in (0.0, 1.0):
        theta[unit] = value
        ends.append(complexity(theta, rho))
    theta[unit] = 0.25
    middle = complexity(theta, rho)
    for each in ("macs", "params"):
        low, high = (float(getattr(end, each)) for end in ends)
        assert float(getattr(middle, each)) == pytest.approx(0.75 * low + 0.25 * high, rel=1e-9)
        assert high > low
    full = size_of(anatomy)
    slope, _ = complexity.gradient(theta, rho, full, kappa=1.0)
    assert float(slope[unit]) == pytest.approx(float((ends[1].macs - ends[0].macs) / full.macs), rel=1e-9, abs=1e-15)


ANATOMIES: dict[str, PrunableGraph] = {}
