"""A user's own token classifier, with padded sequences given by name."""

import torch
from torch import nn

from regimes import Dataset


def data(count=96):
    """Which of two tokens comes more often; sequences of two to six tokens, padded."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 8, (count, 6), generator=random)
    padding_mask = torch.arange(6) >= torch.randint(2, 7, (count, 1), generator=random)
    tokens[padding_mask] = 0
    targets = ((tokens == 1).sum(1) > (tokens == 2).sum(1)).long()
    inputs = {"tokens": tokens, "padding_mask": padding_mask}
    first, last = slice(0, count * 2 // 3), slice(count * 2 // 3, count)
    parts = [({name: each[part] for name, each in inputs.items()}, targets[part]) for part in (first, last)]
    return Dataset.from_arrays(train=parts[0], test=parts[1], title="tokens")


class Tokens(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.tokens = nn.Embedding(8, width)
        self.body = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens, padding_mask):
        hidden = self.body(self.tokens(tokens), src_key_padding_mask=padding_mask)
        return self.head(hidden.masked_fill(padding_mask[..., None], 0).mean(1))


def net(input_shape, classes, width=16):
    return Tokens(classes, width)


class Shared(nn.Module):
    """A network in which every layer shares its weight."""

    def __init__(self, classes):
        super().__init__()
        self.tokens, self.first, self.second = nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, classes)

    def forward(self, tokens, padding_mask):
        hidden = self.tokens(tokens).masked_fill(padding_mask[..., None], 0).mean(1)
        return self.head(torch.relu(self.second(torch.relu(self.first(hidden)))))


def shared(input_shape, classes):
    return Shared(classes)
