"""Weight matching: a permuted copy of a network is the same network, and a barrier to it is only a relabelling."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import SMALL
from torch import nn

from regimes.errors import UserError
from regimes.landscape.linear_path import linear_connectivity
from regimes.landscape.weight_matching import match, permutable_groups
from regimes.models.build import build, seeded
from regimes.pruners.removable_channels import channel_groups

SHAPES: dict[str, tuple[int, ...]] = {"mlp": (6,), "vgg": (3, 32, 32), "torchvision": (3, 32, 32)}


def make(name: str, seed: int, **options: Any) -> tuple[nn.Module, torch.Tensor]:
    """A small model whose BatchNorms have seen something, and a few inputs."""
    shape = SHAPES.get(name, (3, 8, 8))
    model = build(name, {**SMALL[name], **options}, shape, 4, seed)
    inputs = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _ in range(3):
            model.train()(inputs)
    return model.eval(), inputs


def shuffled(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """The same network with every group of channels in another order."""
    turned, random = copy.deepcopy(model), torch.Generator().manual_seed(5)
    state = dict(turned.named_parameters()) | dict(turned.named_buffers())
    for group in permutable_groups(model, inputs[:2]):
        order = torch.randperm(len(group[0].positions), generator=random)
        for place in group:
            place.permute(state[place.name], order)
    return turned


def distance(model: nn.Module, weights: dict[str, torch.Tensor]) -> float:
    """Of a network from weights, tensor by tensor."""
    return sum(float((each.detach() - weights[key]).norm()) for key, each in model.named_parameters())


@pytest.mark.parametrize("name", ["mlp", "preresnet", "resnet", "resnet18", "vgg", "densenet", "mobilenetv2"])
def test_a_permuted_network_is_the_same_and_is_found_again(name: str) -> None:
    model, inputs = make(name, 0)
    turned = shuffled(model, inputs)
    weights = {key: each.detach() for key, each in model.named_parameters()}
    moved = distance(turned, weights)
    assert moved > 1
    torch.testing.assert_close(turned(inputs), model(inputs), rtol=1e-3, atol=1e-4)
    before = copy.deepcopy(turned.state_dict())
    back = match(model, turned, inputs[:2])
    assert all(torch.equal(before[key], each) for key, each in turned.state_dict().items())
    torch.testing.assert_close(back(inputs), model(inputs), rtol=1e-3, atol=1e-4)
    # Untrained thin networks have local optima where channels are many and numbers for each are few.
    share = {"densenet": 0.6, "mobilenetv2": 0.9}.get(name, 1e-6)
    assert distance(back, weights) < share * moved


def test_every_hidden_channel_of_an_mlp_and_a_preresnet_stands_in_one_group() -> None:
    for name, channels in (("mlp", 32), ("preresnet", None)):
        model, inputs = make(name, 0)
        found = permutable_groups(model, inputs[:2])
        sizes = [len(group[0].positions) for group in found]
        if channels is not None:
            assert sum(sizes) == channels
        else:  # one for each residual stream, one inside each block; the head's outputs are nobody's to permute
            blocks = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
            inside = (len(blocks) - 1) // 2
            assert len(found) == inside + 3
    assert len(channel_groups(model, inputs[:2])) == len(found) + 1


def test_the_barrier_to_a_permuted_copy_is_gone_after_matching() -> None:
    """A trained network and itself in another order: a line through nothing good, until they are matched."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=random)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()
    model = build("mlp", {"widths": [32, 32]}, (6,), 4, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    turned = shuffled(model, x)
    apart = linear_connectivity(model, turned, (x, y))
    assert apart.error[0] == apart.error[-1] < 0.03
    assert apart.barrier > 0.1
    matched = match(model, turned, x[:2])
    together = linear_connectivity(model, matched, (x, y))
    assert together.barrier < 1e-6
    assert together.error[5] == pytest.approx(together.error[0], abs=1e-9)


def test_networks_of_two_architectures_cannot_be_matched() -> None:
    model, inputs = make("mlp", 0)
    other, _ = make("mlp", 1, widths=[8, 8])
    with pytest.raises(UserError, match="different parameters"):
        match(model, other, inputs[:2])


def test_frozen_networks_are_matched_as_well() -> None:
    model, inputs = make("mlp", 0)
    turned = shuffled(model, inputs).requires_grad_(False)
    back = match(model.requires_grad_(False), turned, inputs[:2])
    assert distance(back, {key: each.detach() for key, each in model.named_parameters()}) < 1e-5


def test_channels_that_a_bare_parameter_holds_in_place_are_left_alone() -> None:
    class Scaled(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            with seeded(seed):
                self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
                self.scale = nn.Parameter(torch.rand(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.first(x) - 1.5) * self.scale)

    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="Scaled has no hidden channels"):
        match(Scaled(0), Scaled(1), x[:2])


def test_a_weight_with_one_group_on_both_axes_never_ends_farther_away() -> None:
    class Residual(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            with seeded(seed):
                self.first, self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.head(x + torch.relu(self.inner(x)))

    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        a, b = Residual(seed), Residual(100 + seed)
        weights = torch.cat([each.detach().flatten() for each in a.parameters()])
        apart = [torch.cat([each.detach().flatten() for each in one.parameters()]) for one in (b, match(a, b, x))]
        assert float((apart[1] - weights).norm()) <= float((apart[0] - weights).norm()) + 1e-6
