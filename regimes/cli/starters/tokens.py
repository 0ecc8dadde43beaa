"""Sequences of tokens and a transformer of one's own, named in tokens.toml."""

import torch
from torch import nn

import regimes

TOKENS = 10  # of the vocabulary; 0 is padding


def data(length=12, count=900):
    """Return the data set. Every call must return the same data.

    The inputs are a dict, passed to the model as ``model(**inputs)``; all sequences are padded to one length.
    """
    random = torch.Generator().manual_seed(0)
    # Your sequences here: integers (n, length), a mask that is true at padding, and a class number for each sequence.
    tokens = torch.randint(1, TOKENS, (count, length), generator=random)
    padding_mask = torch.arange(length) >= torch.randint(4, length + 1, (count, 1), generator=random)
    tokens[padding_mask] = 0
    targets = ((tokens == 1).sum(1) >= (tokens == 2).sum(1)).long()  # made: 1 occurs at least as often as 2
    # One class number per token instead, for tagging or language models: (n, length), -100 where there is none.
    test = torch.arange(count) % 3 == 0
    parts = [({"tokens": tokens[part], "padding_mask": padding_mask[part]}, targets[part]) for part in (~test, test)]
    return regimes.Dataset.from_arrays(train=parts[0], test=parts[1], title="made sequences")


class TokenClassifier(nn.Module):
    """Transformer that averages its last layer over the tokens which are no padding."""

    def __init__(self, length, classes, width, layers):
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens, padding_mask):
        hidden = self.encoder(self.tokens(tokens) + self.positions, src_key_padding_mask=padding_mask)
        present = (~padding_mask).unsqueeze(-1)
        return self.head((hidden * present).sum(1) / present.sum(1))


def net(input_shape, classes, width=16, layers=2):
    """Return a network with fresh weights; ``input_shape`` is {argument: shape of one input}."""
    return TokenClassifier(input_shape["tokens"][0], classes, width, layers)
