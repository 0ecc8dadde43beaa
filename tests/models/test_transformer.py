"""The decoder-only transformer: what it may see, what torch's own attention computes, and what is pruned."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from regimes import UserError
from regimes.models.build import build
from regimes.models.transformer import CausalAttention, Transformer
from regimes.pruners.prune import prunable


def test_no_position_sees_what_follows() -> None:
    model = build("transformer", {"depth": 3, "width": 16}, (12,), 7, 0).double()
    tokens = torch.randint(0, 7, (4, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 7
    before, after = model(tokens).detach(), model(changed).detach()
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=1e-12, atol=1e-12)
    assert float((before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min()) > 1e-6
    torch.testing.assert_close(model(tokens[:, :5]), before[:, :5], rtol=1e-12, atol=1e-12)


def test_attention_is_torchs_own() -> None:
    attention = CausalAttention(width=16, heads=4, dropout=0.0).double()
    inputs = torch.randn(3, 10, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [
        layer(inputs).view(3, 10, 4, 4).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)
    ]
    expected = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).reshape(3, 10, 16)
    torch.testing.assert_close(attention(inputs), attention.projection(expected))


def test_parameters_are_those_one_counts() -> None:
    depth, width, length, classes = 3, 32, 20, 11
    model = build("transformer", {"depth": depth, "width": width}, (length,), classes, 0)
    block = 12 * width**2 + 13 * width  # 9 biases of attention and perceptron, two LayerNorms
    expected = (classes + length) * width + depth * block + 2 * width + (width + 1) * classes
    assert sum(each.numel() for each in model.parameters()) == expected
    assert sum(each.numel() for each in prunable(model).values()) == 12 * depth * width**2
    assert not any("head" in name for name in prunable(model))


def test_a_fresh_network_guesses_and_its_weights_are_drawn_as_in_gpt2() -> None:
    model = build("transformer", {"depth": 2, "width": 128}, (16,), 64, 0)
    tokens = torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert float(loss) == pytest.approx(torch.tensor(64.0).log().item(), abs=0.1)
    assert isinstance(model, Transformer)
    block = model.blocks[0]
    for layer, std in ((block.expand, 0.02), (block.contract, 0.01), (block.attention.projection, 0.01)):
        assert float(layer.weight.std()) == pytest.approx(std, rel=0.05)
        assert not layer.bias.any()


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(
        UserError, match=r"needs sequences \(length,\) of tokens, the data has inputs of shape \(1, 8, 8\)"
    ):
        build("transformer", {}, (1, 8, 8), 4, 0)
    with pytest.raises(UserError, match=r"model.width = 30: must be a multiple of model.heads = 4"):
        build("transformer", {"width": 30}, (8,), 4, 0)
