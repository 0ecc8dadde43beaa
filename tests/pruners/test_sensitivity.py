"""Pruners that run the model, snip and synflow: frozen and unused layers, tokens, several inputs, sums as losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regimes import Dataset, Mask, UserError, prune
from regimes.data.inputs import TensorGroup
from regimes.pruners.prunable_weights import prunable
from regimes.pruners.prune import Candidate
from regimes.pruners.snip import snip
from regimes.pruners.synflow import synflow


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dataset(inputs: Any, classes: int = 3) -> Dataset:
    count = len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)
    pair = (inputs, torch.arange(count) % classes)
    return Dataset.from_arrays(train=pair, val=pair, test=pair, title="made")


def candidate(model: nn.Module, data: Dataset, density: float = 0.5, loss_fn: Any = F.cross_entropy) -> Candidate:
    return Candidate(model, prunable(model), density, data, loss_fn, torch.Generator())


class Parts(nn.Module):
    """A layer that is frozen, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.unused = nn.Linear(8, 8)
        self.body = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.frozen(inputs).tanh())).relu())


@pytest.mark.parametrize("pruner", [snip, synflow])
def test_frozen_layers_have_scores_and_unused_ones_score_zero(pruner: Callable[[Candidate], dict[str, Tensor]]) -> None:
    model, free = Parts(), Parts()
    free.frozen.requires_grad_(True)
    model.norm.eval()
    data = dataset(random(20, 6))
    scores, others = (pruner(candidate(each, data, 1.0)) for each in (model, free))
    assert all(torch.equal(score, others[name]) for name, score in scores.items())
    assert scores["frozen.weight"].unique().numel() > 1
    assert scores["unused.weight"].unique().numel() == 1
    assert scores["unused.weight"].max() <= min(scores[name].min() for name in ("frozen.weight", "body.weight"))
    assert not model.frozen.weight.requires_grad
    assert (model.training, model.norm.training) == (True, False)
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("pruner", ["snip", "synflow"])
def test_frozen_and_unused_layers_are_pruned_to_the_density(pruner: str) -> None:
    mask = prune(Parts(), 0.25, pruner, "global", dataset(random(20, 6)))
    assert (mask.kept, mask.size) == (44, 176)
    assert not mask.layers["unused.weight"].any()


def test_snip_is_the_derivative_of_the_loss_by_a_factor_of_each_weight() -> None:
    model, data = Parts().double().eval(), dataset(random(300, 6).double())
    weight, step = model.body.weight, 1e-6
    scores = snip(candidate(model, data))["body.weight"]

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(data.train.inputs), data.train.targets, reduction="sum"))

    for at in [(0, 0), (3, 5), (7, 7)]:
        value = float(weight.detach()[at])
        weight.data[at] = value * (1 + step)
        high = loss()
        weight.data[at] = value * (1 - step)
        slope = (high - loss()) / (2 * step)
        weight.data[at] = value
        assert float(scores[at]) == pytest.approx(abs(slope), rel=1e-5)


def test_snip_scores_of_a_summed_loss_are_those_of_its_mean() -> None:
    data = dataset(random(300, 6).double())  # batches of 128, 128 and 44
    mean, total = (
        snip(candidate(Parts().double(), data, loss_fn=nn.CrossEntropyLoss(reduction=how))) for how in ("mean", "sum")
    )
    for name, score in mean.items():
        torch.testing.assert_close(total[name], 300 * score)


class Reader(nn.Module):
    """Takes tokens and a mask by name, and returns a dict as language models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding = nn.Embedding(12, 8)
        self.mixer = nn.Linear(8, 8)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        found = self.mixer(self.embedding(tokens)) * mask[:, :, None]
        return {"logits": self.head(self.recurrent(found)[0].mean(dim=1))}


def reading() -> Dataset:
    tokens = torch.randint(0, 12, (30, 5), generator=torch.Generator().manual_seed(0))
    return dataset({"tokens": tokens, "mask": torch.arange(5) < 1 + torch.arange(30)[:, None] % 5})


@pytest.mark.parametrize("pruner", ["snip", "synflow"])
@pytest.mark.parametrize("embeddings", [False, True])
def test_inputs_by_name_tokens_and_outputs_with_logits(pruner: str, embeddings: bool) -> None:
    data = reading()
    assert isinstance(data.train.inputs, TensorGroup)
    mask = prune(Reader(), 0.3, pruner, "global", data, embeddings=embeddings)
    size = 64 + 2 * 192 + 96 * embeddings
    assert (mask.kept, mask.size) == (round(0.3 * size), size)
    assert ("embedding.weight" in mask.layers) == embeddings


def test_synflow_of_tokens_is_that_of_the_absolute_embeddings() -> None:
    data = dataset(torch.randint(0, 12, (9, 4), generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 5), nn.Flatten(), nn.Linear(20, 6), nn.Linear(6, 3))
    scores = synflow(candidate(model, data, 1.0))["2.weight"]
    embedded = model[0].weight.detach().double().abs()[data.train.inputs[0]].flatten()
    flow = model[2].weight.detach().double().abs() * embedded * model[3].weight.detach().double().abs().sum(0)[:, None]
    torch.testing.assert_close(scores, 1 + flow / flow.max())


def test_synflow_with_attention_and_a_mask_of_infinities() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            self.head = nn.Linear(8, 3)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.layer(self.first(inputs), src_mask=self.mask)[:, -1])

    mask = prune(Causal(), 0.3, "synflow", "global", dataset(random(8, 5, 4)))
    assert mask.kept == round(0.3 * (32 + 4 * 64 + 2 * 64))


def test_a_flow_of_zero_everywhere_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    nn.init.zeros_(model[1].weight)
    with pytest.raises(UserError, match="finds no weight with a finite flow"):
        prune(model, 0.5, "synflow", data=dataset(random(8, 6)))


def test_pruners_see_plain_weights_in_place_of_parametrised_ones() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    for pruner in ("snip", "synflow", "magnitude", "random"):
        mask = prune(model, 0.25, pruner, data=dataset(random(20, 6)))
        assert isinstance(mask, Mask)
        assert {name: int(each.sum()) for name, each in mask.layers.items()} == {
            "0.parametrizations.weight.original": 12
        }
    assert type(model[0]).__name__ == "ParametrizedLinear"


class InPlace(nn.Module):
    """A network that changes its inputs."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        x -= self.shift
        return torch.as_tensor(self.head(self.second(self.first(x).relu()).relu()))


def test_snip_leaves_the_data_of_a_network_that_changes_its_inputs() -> None:
    inputs, targets = random(300, 6), torch.arange(300) % 3
    moved, plain = InPlace(0.1), InPlace(0.0)
    plain.load_state_dict(moved.state_dict())
    data, shifted = (
        Dataset.from_arrays((each, targets), (each, targets), title="own") for each in (inputs.clone(), inputs - 0.1)
    )
    kept = data.train.inputs.clone()
    masks = [prune(model, 0.5, "snip", data=each) for model, each in ((moved, data), (plain, shifted))]
    assert torch.equal(data.train.inputs, kept)
    assert all(torch.equal(each, masks[1].layers[name]) for name, each in masks[0].layers.items())
