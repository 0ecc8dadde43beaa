"""Ladders over networks of one's own: which ones narrow, which are refused, and smaller networks given by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn

import regimes
from regimes import UserError

optuna.logging.set_verbosity(optuna.logging.WARNING)
RANDOM = torch.Generator().manual_seed(0)
ROWS = torch.randn(8, 8, generator=RANDOM)
TOKENS = torch.randint(0, 20, (8, 5), generator=RANDOM)
STEPS = torch.randn(8, 5, 8, generator=RANDOM)
IMAGES = torch.randn(8, 3, 8, 8, generator=RANDOM)


class Normed(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(8, width), nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.body(x))))


class Viewed(nn.Module):
    """Its forward has a width in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)).view(-1, 4, 4).transpose(1, 2).reshape(-1, 16))


class Transformer(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
        self.tokens, self.body, self.head = (
            nn.Embedding(20, width),
            nn.TransformerEncoder(layer, 1),
            nn.Linear(width, 4),
        )

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.head(self.body(self.tokens(tokens), src_key_padding_mask=padding_mask).mean(1))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x) * self.right(y)))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.body, self.head = nn.Embedding(20, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.tokens(tokens).mean(1))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, groups=4, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Patches(nn.Module):
    """A vision transformer, as small as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 4)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.body = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).reshape(len(x), 8, 4).permute(0, 2, 1)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), patches], dim=1) + self.places
        return self.head(self.body(tokens)[:, 0])


NARROWS = [(Normed, ROWS), (Pair, (ROWS, ROWS)), (Pair, {"x": ROWS, "y": ROWS}), (Embedded, TOKENS), (Grouped, IMAGES)]


@pytest.mark.parametrize(("make", "inputs"), NARROWS)
def test_what_narrows_takes_its_inputs_and_can_be_trained(make: Callable[[], nn.Module], inputs: Any) -> None:
    ladder = regimes.ladder(make, inputs, densities=[0.3])
    step = next(iter(ladder.climb(optuna.create_study().ask())))
    small, whole = step.model(), make()
    arguments = inputs if isinstance(inputs, (tuple, dict)) else (inputs,)
    outputs = small(**arguments) if isinstance(arguments, dict) else small(*arguments)
    outputs.sum().backward()
    assert outputs.shape == (8, 4)
    assert all(each.grad is not None for each in small.parameters())
    weights = [sum(each.numel() for each in model.parameters() if each.dim() > 1) for model in (small, whole)]
    assert 0.15 < weights[0] / weights[1] < 0.6


@pytest.mark.parametrize(
    ("make", "inputs", "proxy", "reason"),
    [
        (Viewed, ROWS, "narrowed", r"shape '\[-1, 4, 4\]' is invalid"),
        (Transformer, TOKENS, "narrowed", "density 0.01.*: the nearest .* keep all channels"),
        (Transformer, TOKENS, "channels-magnitude", "density 0.01.*: the nearest"),
        (Patches, IMAGES, "narrowed", "Patches"),
        (Grouped, IMAGES, "channels-magnitude", "Grouped cannot be cut"),
        (Tied, ROWS, "narrowed", "second shares its weight"),
        (Tied, ROWS, "channels-magnitude", "second shares its weight"),
    ],
)
def test_what_cannot_be_narrowed_is_refused_in_one_line(
    make: Callable[[], nn.Module], inputs: Any, proxy: str, reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        regimes.ladder(make, inputs, densities=[0.01 if make is Transformer else 0.3], proxy=proxy)
    assert str(refused.value).count("\n") == 0
    assert "proxies=[...]" in str(refused.value)


def test_networks_of_ones_own_are_rungs_by_measured_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"tokens": TOKENS, "padding_mask": TOKENS == 0}
    monkeypatch.setattr("regimes.hpo.custom_loop._seconds", lambda model, inputs: model.head.in_features / 4)
    ladder = regimes.ladder(lambda: Transformer(16), inputs, proxies=[lambda: Transformer(8), lambda: Transformer(4)])
    size = {width: sum(each.numel() for each in Transformer(width).parameters()) for width in (4, 8, 16)}
    shares = [size[4] / size[16], size[8] / size[16], 1.0]
    assert [density for density, _ in ladder.rungs] == pytest.approx(shares)
    assert ladder.seconds == [1.0, 2.0, 4.0]
    assert ladder.steps == [1, 3, 7]
    for step, width in zip(ladder.climb(optuna.create_study().ask()), (4, 8, 16), strict=True):
        first, again = step.model().state_dict(), step.model().state_dict()
        assert first["head.weight"].shape == (4, width)
        assert all(torch.equal(each, again[name]) for name, each in first.items())


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({}, r"either densities=\[\.\.\.\]"),
        ({"densities": [0.1], "proxies": [Normed]}, r"either densities=\[\.\.\.\]"),
        ({"densities": ["x"]}, "densities: 'x' is not a number"),
        ({"densities": [float("nan")]}, "densities: nan is out of range"),
        ({"proxies": [Normed(8)]}, "proxies: Normed is not a function"),
        ({"proxies": [lambda: 3]}, "a function returned int"),
        ({"proxies": [lambda: nn.Linear(3, 4)]}, "Linear raised RuntimeError for these inputs"),
        ({"proxies": [Normed], "data": [1, 2]}, "inputs are list; give a Dataset"),
        ({"proxies": [Normed], "data": ROWS.numpy()}, "inputs are ndarray; give a Dataset"),
        ({"proxies": [Normed], "data": torch.tensor(1.0)}, "inputs are Tensor; give a Dataset"),
        ({"proxies": [Normed], "data": (ROWS, ROWS[:3])}, "the same first length"),
    ],
)
def test_what_is_no_ladder_is_refused(how: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        regimes.ladder(Normed, **{"data": ROWS, **how})
