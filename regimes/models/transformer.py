"""Decoder-only transformer for sequences of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regimes.errors import UserError

INITIAL_STD = 0.02  # of weights and embeddings, as in GPT-2


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position attends to itself and to those before it.

    Queries, keys and values each have a linear layer of their own. The scores are computed explicitly: fused attention
    can neither be differentiated twice nor stacked by ``vmap``.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.projection = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the attended values (n, length, width)."""
        length = inputs.shape[-2]
        query, key, value = (self._split(layer(inputs)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (n, heads, length, length)
        later = torch.ones(length, length, dtype=torch.bool, device=inputs.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
        mixed = self.dropout(scores.softmax(dim=-1)) @ value
        out: Tensor = self.projection(mixed.transpose(-3, -2).flatten(-2))
        return out

    def _split(self, features: Tensor) -> Tensor:
        """Reshape (n, length, width) to (n, heads, length, width of a head)."""
        return features.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class TransformerBlock(nn.Module):
    """Attention, then a perceptron with one hidden layer of four times the width; each with LayerNorm before it, and
    added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output (n, length, width)."""
        features = inputs + self.dropout(self.attention(self.norm1(inputs)))
        hidden = self.activation(self.expand(self.norm2(features)))
        out: Tensor = features + self.dropout(self.contract(hidden))
        return out


class Transformer(nn.Module):
    """Decoder-only transformer that predicts the next token at every position, after GPT-2.

    Pre-norm blocks, learned positions, GELU, no tied weights. Weights and embeddings are drawn with standard deviation
    0.02, divided by sqrt(2 depth) in the layers that add to the residual stream; biases are zero.

    Args:
        input_shape: (length,) of sequences of token numbers below ``classes``; shorter ones are taken too.
        classes: number of different tokens.
        depth: number of blocks.
        width: number of features of a token, a multiple of ``heads``.
        heads: number of attention heads.
        dropout: dropout probability of embeddings, attention and what a block adds.

    Raises:
        UserError: inputs that are not sequences, or a width that the heads do not divide.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        depth: int = 2,
        width: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(input_shape, tuple) or len(input_shape) != 1:
            raise UserError(
                f"model 'transformer' needs sequences (length,) of tokens, the data has inputs of shape {input_shape}"
            )
        if heads < 1 or width % heads:
            raise UserError(f"model.width = {width}: must be a multiple of model.heads = {heads}")
        (length,) = input_shape
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self._draw(depth)

    def _draw(self, depth: int) -> None:
        nn.init.normal_(self.positions, std=INITIAL_STD)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                residual = name.endswith(("projection", "contract"))
                nn.init.normal_(module.weight, std=INITIAL_STD / math.sqrt(2 * depth) if residual else INITIAL_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of the next token (n, length, classes) at every position of token numbers (n, length)."""
        features = self.dropout(self.tokens(inputs) + self.positions[: inputs.shape[-1]])
        logits: Tensor = self.head(self.norm(self.blocks(features)))
        return logits
