"""Multiply-accumulates of networks that are more than convolutions and linear layers, against counts by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import regimes
from regimes.config.recipe import Recipe
from regimes.data.inputs import TensorGroup
from regimes.discovery.complexity import size_of
from regimes.discovery.count_macs import count_macs
from regimes.discovery.removal import remove
from regimes.discovery.trace_graph import trace_graph

HEAD = 16 * 2


class Attention(nn.Module):
    def __init__(self, scores: bool = False) -> None:
        super().__init__()
        self.scores = scores
        self.attend, self.body, self.head = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 16),
            nn.Linear(16, 2),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        attended, _ = self.attend(tokens, tokens, tokens, need_weights=self.scores)
        return self.head(torch.relu(self.body(attended)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells, self.body, self.head = kind(8, 12, batch_first=True), nn.Linear(12, 16), nn.Linear(16, 2)

    def forward(self, steps: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.cells(steps)[0][:, -1])))


class Bare(nn.Module):
    """A product with a bare parameter in front of a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 6))
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(values @ self.matrix)))


PROJECTIONS = 5 * 8 * (3 * 8 + 8)  # query, key and value; output
SCORES = 2 * 2 * 5 * 5 * 4  # two heads of width 4: queries by keys, then by values
COUNTED = [
    (Attention(), (5, 8), PROJECTIONS + 5 * 8 * 16 + HEAD),
    (Attention(scores=True), (5, 8), PROJECTIONS + SCORES + 5 * 8 * 16 + HEAD),
    (Recurrent(nn.GRU), (5, 8), 5 * 3 * 12 * (8 + 12) + 12 * 16 + HEAD),
    (Recurrent(nn.LSTM), (5, 8), 5 * 4 * 12 * (8 + 12) + 12 * 16 + HEAD),
    (Recurrent(nn.RNN), (5, 8), 5 * 12 * (8 + 12) + 12 * 16 + HEAD),
    (Bare(), (8,), 8 * 6 + 6 * 16 + HEAD),
]


@pytest.mark.parametrize(("model", "shape", "macs"), COUNTED)
def test_all_products_count(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    assert count_macs(model, inputs) == macs
    graph = trace_graph(model, inputs)
    assert int(size_of(graph).macs) == macs
    half = torch.arange(graph.units) % 2 == 0
    assert "body" in {group.name for group in graph.groups}
    small = copy.deepcopy(model)
    remove(small, graph, half, [], {})
    assert int(size_of(graph.without(half, [])).macs) == count_macs(small, inputs)


@pytest.mark.parametrize(("model", "macs"), [(Attention(), 1_952), (Recurrent(nn.GRU), 3_824)])
def test_a_discovery_says_the_macs_of_the_whole_network(model: nn.Module, macs: int) -> None:
    inputs = torch.randn(40, 5, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(40) % 2
    data = regimes.Dataset.from_arrays(train=(inputs[:30], targets[:30]), test=(inputs[30:], targets[30:]), title="t")
    recipe = Recipe(epochs=2, batch_size=10, augment="none")
    found = regimes.discover(model, data, nu=0.1, alpha=0.0, recipe=recipe)
    assert found.full_macs == macs
    assert found.macs == count_macs(found.model, inputs)


def test_inputs_by_name_are_counted() -> None:
    inputs = TensorGroup({"tokens": torch.randn(3, 5, 8)})
    assert count_macs(Attention(), inputs) == 1_952
