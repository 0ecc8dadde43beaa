"""Which layers can lose channels: found by taking one out of each group, and running what remains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import UserError
from regimes.pruners.channels import fit_to_state, shrink
from regimes.pruners.removable_channels import fixed_layers

STEPS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A block of a transformer, with the norms first, written without torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y, (count, places, _) = self.norms[0](x), x.shape
        parts = (each(y).view(count, places, 2, 4).transpose(1, 2) for each in (self.query, self.key, self.value))
        heads = functional.scaled_dot_product_attention(*parts).transpose(1, 2)
        x = x + self.out(heads.reshape(count, places, 8))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Blocks(nn.Module):
    def __init__(self, own: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True, norm_first=True)
        self.body = Block() if own else nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class Chunked(nn.Module):
    """A gated unit: the first half of the channels times the second."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.body(x).chunk(2, 1)
        return self.head(value * torch.sigmoid(gate))


class Reshaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.body(x)).view(-1, 4, 4).flatten(1))))


class Shared(nn.Module):
    """Two layers of one weight, behind one that feeds the first and in front of one that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.third.weight = self.second.weight
        self.free, self.head = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third, self.free):
            x = torch.relu(layer(x))
        return self.head(x)


@pytest.mark.parametrize("own", [True, False])
def test_feed_forward_units_of_a_transformer_are_removed_and_heads_stay(own: bool) -> None:
    model = Blocks(own)
    small, kept = shrink(model, 0.8, STEPS[:2], "channels-magnitude", "uniform", seed=0)
    assert kept == pytest.approx(0.8, abs=0.1)
    up = small.get_submodule("body.up" if own else "body.layers.0.linear1")
    assert isinstance(up, nn.Linear)
    assert up.out_features < 32
    heads = ["body.query", "body.key", "body.value"] if own else ["body.layers.0.self_attn"]
    assert set(heads) <= set(fixed_layers(model, STEPS[:2]))
    again = fit_to_state(Blocks(own), small.state_dict()).eval()  # as stored networks are read
    assert torch.allclose(again(STEPS), small.eval()(STEPS), atol=1e-6)


def test_units_that_weigh_nothing_can_leave_without_a_change() -> None:
    """The feed-forward units with the smallest weights are those that the pruned network lacks."""
    model = Blocks(own=True)
    block = model.body
    assert isinstance(block, Block)
    with torch.no_grad():
        for each in (block.up.weight, block.up.bias):
            each[::2] = 0
        block.down.weight[:, ::2] = 0
    fixed = fixed_layers(model, STEPS[:2])
    assert "body.up" not in fixed
    small, _ = shrink(model, 0.85, STEPS[:2], "channels-magnitude", "global", seed=0)
    up = small.get_submodule("body.up")
    assert isinstance(up, nn.Linear)
    assert 16 <= up.out_features < 32
    assert torch.allclose(small.eval()(STEPS), model.eval()(STEPS), atol=1e-5)


def test_halves_of_a_chunk_leave_together() -> None:
    """Brute force: the pruned network computes what the whole one does with the lost pairs silenced."""
    model, inputs = Chunked(), STEPS[:, 0]
    small, _ = shrink(model, 0.5, inputs[:2], "channels-magnitude", "uniform", seed=0)
    body = small.get_submodule("body")
    assert isinstance(body, nn.Linear)
    rows = [int((model.body.weight == row).all(1).nonzero()) for row in body.weight]
    half = len(rows) // 2
    assert [row + 6 for row in rows[:half]] == rows[half:]
    with torch.no_grad():
        model.head.weight[:, [unit for unit in range(6) if unit not in rows]] = 0
    assert torch.allclose(small(inputs), model(inputs), atol=1e-6)


def test_layers_with_a_width_in_the_forward_or_a_shared_weight_keep_theirs() -> None:
    inputs = STEPS[:2, 0]
    assert set(fixed_layers(Reshaped(), inputs)) == {"body"}
    assert set(fixed_layers(Shared(), inputs)) == {"first", "second", "third"}
    small, _ = shrink(Shared(), 0.7, inputs, "channels-random", "uniform", seed=0)
    assert small.get_submodule("second").weight is small.get_submodule("third").weight
    assert small.get_submodule("free").weight.shape[0] < 10


def test_a_network_that_can_lose_no_channel_is_refused_by_name_of_the_layer() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Unflatten(1, (4, 4)), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(UserError, match="Sequential cannot be pruned by channels: 0 must keep all its own") as refused:
        shrink(model, 0.5, STEPS[:2, 0], "channels-magnitude", "uniform", seed=0)
    assert "\n" not in str(refused.value)
