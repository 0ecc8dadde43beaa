"""What a trace promises and a trial does not hold is no unit and no block."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from small_networks import images, network, some
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regimes import UserError
from regimes.discovery import save_network as files
from regimes.discovery.complexity import size_of
from regimes.discovery.removal import remove
from regimes.discovery.trace_graph import trace_graph
from regimes.models.build import seeded
from regimes.models.residual_blocks import find_blocks


class Twice(nn.Module):
    """Two additions, or a branch that ends in a function: no block."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.one, self.two, self.functional = nn.Linear(6, 6), nn.Linear(6, 6), functional

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            return x + torch.tanh(self.one(x))
        x = x + self.one(x)
        return x + self.two(x)


class Shuffled(nn.Module):
    """Its own code counts on a width: units of the first layer cannot leave."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        hidden = hidden * torch.linspace(0, 1, 8, dtype=x.dtype) if hidden.shape[1] == 8 else hidden * 2
        out: Tensor = self.head(torch.relu(self.second(hidden)))
        return out


def test_what_cannot_be_switched_off_by_one_factor_is_no_block() -> None:
    for functional in (False, True):
        assert find_blocks(nn.Sequential(Twice(functional), nn.Linear(6, 3))) == ()


def test_units_whose_removal_changes_something_else_stay() -> None:
    anatomy = trace_graph(Shuffled(), torch.randn(4, 6))
    assert [group.name for group in anatomy.groups] == ["second"]
    assert bool((anatomy.layers["first"].rows < 0).all())


def test_layers_that_are_not_needed_alone_are_told_from_those_that_are() -> None:
    dense = trace_graph(network("densenet"), images(2))
    vital = {group.name: group.vital for group in dense.groups}
    assert vital["stem"]
    assert not vital["blocks.0.conv"]  # what it adds stands beside what came in
    squeezed = trace_graph(network("squeeze and excitation"), images(2))
    assert not next(group for group in squeezed.groups if "fc1" in group.name).vital


class Residual(nn.Module):
    """``x + two(relu(one(x)))``, in ways that a trace does not see through."""

    def __init__(self, how: str = "", shared: nn.Linear | None = None) -> None:
        super().__init__()
        self.how = how
        self.one, self.two = shared or nn.Linear(6, 8), nn.Linear(8, 6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        out: Tensor = x + self.two(self.one(self.relu(x) if self.how == "in place" else x))
        return out


class Host(nn.Module):
    """Two residual blocks and a head, used in ways that forbid to take the first one out."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = Residual(how)
        self.second = Residual(shared=self.first.one if how == "shared" else None)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 * x
        x = self.first(x, None) if self.how == "two arguments" else self.first(x)
        if self.how == "attribute":
            x = x + self.first.two.bias
        out: Tensor = self.head(self.second(x))
        return out


@pytest.mark.parametrize(
    ("how", "blocks"),
    [("", 2), ("in place", 1), ("shared", 0), ("two arguments", 1), ("attribute", 1)],
)
def test_blocks_that_cannot_be_taken_out_are_none(how: str, blocks: int) -> None:
    assert len(trace_graph(Host(how), torch.randn(4, 6)).blocks) == blocks


def test_the_network_itself_is_no_block() -> None:
    anatomy = trace_graph(Residual(), torch.randn(4, 6))
    assert anatomy.blocks == ()
    assert [group.name for group in anatomy.groups] == ["one"]


class Standardised(nn.Conv2d):
    """A layer of one's own: what it computes is not what its class in torch would."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize("kind", ["own", "transposed", "parametrized"])
def test_layers_that_are_not_plain_keep_their_size_and_are_counted(kind: str, tmp_path: Path) -> None:
    middle: nn.Module = {
        "own": Standardised(8, 8, 3, padding=1),
        "transposed": nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1),
        "parametrized": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
    }[kind]
    tail = [nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), copy.deepcopy(middle), nn.ReLU(), *copy.deepcopy(tail))

    model, inputs = net().eval(), torch.randn(3, 3, 9, 9)
    anatomy = trace_graph(model, inputs)
    assert [group.name for group in anatomy.groups] == ["4", "6"]
    size = size_of(anatomy)
    assert int(size.params) == sum(each.numel() for each in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs[:1])
    assert int(size.macs) == counter.get_total_flops() // 2
    units, _ = some(anatomy, 1)
    left, _ = remove(model, anatomy, units, [], {})
    again = files.rebuild(net().eval(), files.plan_of(model, left), model.state_dict())
    torch.testing.assert_close(again(inputs), model(inputs), rtol=0, atol=0)


def test_a_head_of_zeros_hides_nothing() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.nn.functional.normalize(torch.relu(self.one(x)), dim=1)  # its units know of each other
            out: Tensor = self.head(torch.relu(self.two(hidden)))
            return out

    for seed in range(3):
        with seeded(seed):  # in some draws dead units hide what is asked
            anatomy = trace_graph(Normalised(), torch.randn(4, 6))
        assert [group.name for group in anatomy.groups] == ["two"]


def test_an_axis_folded_into_the_batch_is_refused() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.two(torch.relu(self.one(x.reshape(-1, 3))))
            out: Tensor = hidden.reshape(len(x), -1, 3).mean(1)
            return out

    with pytest.raises(UserError, match="Folded mixes the inputs of a batch, or folds another axis into it"):
        trace_graph(Folded(), torch.randn(4, 6))


def test_sizes_of_batch_norm_without_scales_are_renamed() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3))

    model, inputs = net().eval(), torch.randn(4, 6)
    anatomy = trace_graph(model, inputs)
    left, _ = remove(model, anatomy, torch.arange(8) < 3, [], {})
    assert model[1].num_features == 5  # type: ignore[index]
    again = files.rebuild(net().eval(), files.plan_of(model, left), model.state_dict())
    torch.testing.assert_close(again(inputs), model(inputs), rtol=0, atol=0)


def test_a_network_that_can_lose_nothing_says_so() -> None:
    with pytest.raises(UserError, match="nothing in Linear can be removed"):
        trace_graph(nn.Linear(4, 3), torch.randn(2, 4))


class Halved(nn.Module):
    """Its halves are added: an odd number of units cannot remain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.relu(self.first(x)).chunk(2, 1)
        out: Tensor = self.head(torch.relu(self.second(one + other)))
        return out


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (nn.Linear(6, size) for size in (6, 6, 6, 3))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third):
            x = torch.relu(layer(x))
        out: Tensor = self.head(x)
        return out


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.body, self.last):
            x = torch.relu(layer(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(
    ("model", "shape", "names"),
    [(Halved(), (6,), ["second"]), (Tied(), (6,), ["third"]), (Grouped(), (3, 6, 6), ["last"])],
)
def test_halves_groups_and_shared_weights_keep_their_units(
    model: nn.Module, shape: tuple[int, ...], names: list[str]
) -> None:
    graph = trace_graph(model, torch.randn(4, *shape))
    assert [group.name for group in graph.groups] == names


def test_feed_forward_units_of_a_transformer_are_found_and_heads_are_not() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))
    inputs = torch.randn(4, 5, 8)
    graph = trace_graph(model, inputs)
    assert [(group.name, group.size) for group in graph.groups] == [
        ("0.layers.0.linear1", 32),
        ("0.layers.1.linear1", 32),
    ]
    attention, feed_forward, head = 5 * 8 * 32, 5 * 2 * 8 * 32, 40 * 3
    assert int(size_of(graph).macs) == 2 * (attention + feed_forward) + head
    half = torch.arange(64) % 2 == 0
    small = copy.deepcopy(model)
    remove(small, graph, half, [], {})
    with torch.no_grad():
        for number in range(2):
            model.get_submodule(f"0.layers.{number}.linear2").weight[:, ::2] = 0  # type: ignore[index, operator]
    assert torch.allclose(small.eval()(inputs), model.eval()(inputs), atol=1e-6)
