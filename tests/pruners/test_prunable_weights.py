"""Which weights are prunable, counted by hand; what is left out is said, and what cannot be masked is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from regimes import Mask, UserError, mask_of_zeros, prune
from regimes.pruners.prunable_weights import coverage, prunable


def sizes(model: nn.Module, **how: Any) -> dict[str, int]:
    return {name: each.numel() for name, each in prunable(model, **how).items()}


class Tokens(nn.Module):
    """Embedding of 50 tokens, one transformer layer of 8 features, and a head."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.mixer = nn.Parameter(torch.eye(8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 50 if tied else 3)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens) @ self.mixer).mean(dim=1))


def test_transformer_is_pruned_with_its_packed_attention_weights() -> None:
    model = Tokens()
    one = {"self_attn.in_proj_weight": 3 * 64, "self_attn.out_proj.weight": 64, "linear1.weight": 8 * 16}
    one["linear2.weight"] = 16 * 8
    assert sizes(model) == {f"encoder.layers.{i}.{name}": size for i in (0, 1) for name, size in one.items()}
    mask = prune(model, 0.2, allocation="global")
    assert (mask.kept, mask.size) == (round(0.2 * 1024), 1024)
    mask.apply(model)
    assert sum(int((each != 0).sum()) for each in prunable(model).values()) == mask.kept
    assert model.eval()(torch.zeros(2, 5, dtype=torch.long)).isfinite().all()


def test_what_is_not_prunable_is_counted_with_its_reason() -> None:
    biases = 2 * (3 * 8 + 8 + 16 + 8 + 4 * 8) + 3
    found = coverage(Tokens())
    assert (found.prunable, found.parameters) == (1024, 1024 + 400 + 24 + 64 + biases)
    assert found.left_out == {
        "embeddings": 400,
        "biases and norms": biases,
        "head (head)": 24,
        "mixer (own parameter)": 64,
    }
    assert found.text == (
        f"1,024 of {found.parameters:,} weights; not: embeddings 400, biases and norms {biases}, head (head) 24, "
        "mixer (own parameter) 64"
    )
    many = nn.ModuleList([nn.Linear(4, 4), *[nn.ParameterList([torch.zeros(4, i)]) for i in range(2, 9)]])
    assert coverage(many).text.endswith("5.0 (own parameter) 24, 4.0 (own parameter) 20, 3 more own parameters 36")


def test_embeddings_are_pruned_on_request_unless_the_head_has_their_weights() -> None:
    assert sizes(Tokens(), embeddings=True) == {"embedding.weight": 400, **sizes(Tokens())}
    assert sizes(Tokens(tied=True), embeddings=True) == sizes(Tokens())
    assert coverage(Tokens(tied=True), embeddings=True).left_out["head (head)"] == 400
    bag = nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    assert sizes(bag, embeddings=True) == {"0.weight": 40, "1.weight": 20}
    assert prune(bag, 0.5, embeddings=True).kept == 30
    mask = prune(bag, 0.5, embeddings=True)
    mask.apply(bag)
    zeros = mask_of_zeros(bag, embeddings=True)
    assert zeros is not None
    assert zeros.kept == 30


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        (nn.MultiheadAttention(8, 2, kdim=6, vdim=4), [64, 48, 32, 64]),
        (nn.ConvTranspose1d(4, 6, 3), [72]),
        (nn.ConvTranspose2d(4, 6, 3), [216]),
        (nn.LSTM(5, 7, num_layers=2, bidirectional=True), [4 * 7 * each for each in (5, 7, 5, 7, 14, 7, 14, 7)]),
        (nn.LSTM(5, 7, proj_size=3), [4 * 7 * 5, 4 * 7 * 3, 7 * 3]),
        (nn.GRU(5, 7), [105, 147]),
        (nn.RNN(5, 7), [35, 49]),
        (nn.LSTMCell(5, 7), [140, 196]),
        (nn.GRUCell(5, 7), [105, 147]),
        (nn.Conv3d(2, 3, 2), [48]),
    ],
)
def test_every_kind_of_layer_with_a_weight_matrix_is_pruned(layer: nn.Module, weights: list[int]) -> None:
    model = nn.ModuleList([layer, nn.Linear(3, 2)])
    assert list(sizes(model).values()) == weights
    mask = prune(model, 0.3)
    assert mask.kept == round(0.3 * sum(weights))
    mask.apply(model)
    found = mask_of_zeros(model)
    assert found is not None
    assert {name: int(each.sum()) for name, each in found.layers.items()} == {
        name: int(each.sum()) for name, each in mask.layers.items()
    }


class Squeezed(nn.Module):
    """A convolutional head, with a linear layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        found = self.stem(images).relu()
        return self.head(found * self.gate(found.mean((2, 3)))[:, :, None, None].sigmoid()).mean((2, 3))


def test_a_convolution_as_head_is_spared_and_the_linear_layer_inside_is_not() -> None:
    assert sizes(Squeezed()) == {"stem.weight": 36, "gate.weight": 16}
    assert coverage(Squeezed()).left_out == {"head (head)": 12, "biases and norms": 4 + 4 + 3}


def test_a_weight_of_two_layers_counts_once() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    model[1].weight = model[0].weight
    assert sizes(model) == {"0.weight": 16, "2.weight": 16}
    model[3].weight = model[2].weight  # the head's
    assert sizes(model) == {"0.weight": 16}


def network(norm: Callable[..., nn.Module], **how: Any) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5), nn.Linear(5, 3))
    norm(layers[0], **how), norm(layers[3])
    return layers


NORMS = [
    (parametrizations.spectral_norm, {}, "original"),
    (parametrizations.weight_norm, {}, "original1"),
    (parametrizations.weight_norm, {"dim": 1}, "original1"),
    (parametrizations.weight_norm, {"dim": None}, "original1"),
]


@pytest.mark.parametrize(("norm", "how", "original"), NORMS)
@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp"])
def test_weights_under_a_norm_are_pruned_by_their_values(
    norm: Callable[..., nn.Module], how: dict[str, Any], original: str, allocation: str
) -> None:
    model = network(norm, **how)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(1 + 9 * (each.numel() == 54))  # the largest originals are not the largest weights
    before = copy.deepcopy(model.state_dict())
    mask = prune(model, 0.02, allocation=allocation)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert list(mask.layers) == [f"{at}.parametrizations.weight.{original}" for at in (0, 3)]
    assert (mask.kept, mask.size) == (round(0.02 * 1134), 54 + 1080)
    weight = model.eval()[3].weight.detach().abs()
    live = mask.layers[f"3.parametrizations.weight.{original}"]
    if norm is parametrizations.spectral_norm:
        assert weight[live].min() >= weight[~live].max()
    elif "dim" not in how:
        assert live.gather(1, weight.argmax(dim=1, keepdim=True)).all()  # no channel loses its norm
    mask.apply(model)
    again = mask_of_zeros(model)
    assert again is not None
    assert again.kept == mask.kept
    model.train()(torch.randn(4, 1, 8, 8))
    for at in (0, 3):
        assert model[at].weight.isfinite().all()
        assert torch.equal(model[at].weight != 0, mask.layers[f"{at}.parametrizations.weight.{original}"])


def test_rounds_of_pruning_under_a_norm_stay_within_the_earlier_mask() -> None:
    model = network(parametrizations.weight_norm)
    first = prune(model, 0.1, allocation="global")
    first.apply(model)
    second = prune(model, 0.02, allocation="global", within=first)
    assert all(not (second.layers[name] & ~first.layers[name]).any() for name in first.layers)
    assert second.kept == round(0.02 * 1134)


def test_fewer_weights_than_norms_are_refused() -> None:
    with pytest.raises(UserError, match=r"keeps 6 weights, .* 11 together"):
        prune(network(parametrizations.weight_norm), 0.005)


@pytest.mark.parametrize("function", [prune, mask_of_zeros, coverage, prunable])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (parametrizations.orthogonal, r"layer '3' .* made by _Orthogonal.*remove_parametrizations"),
        (lambda layer: torch_prune.random_unstructured(layer, "weight", 0.5), r"layer '0' .*prune\.remove\(layer, 'w"),
        (nn.utils.spectral_norm, r"layer '0' .* old hook .*parametrizations\.spectral_norm"),
        (nn.utils.weight_norm, r"layer '0' .* old hook .*parametrizations\.weight_norm"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_cannot_be_masked_is_refused_in_one_line(
    function: Callable[..., Any], change: Callable[..., nn.Module], message: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    change(model[3 if change is parametrizations.orthogonal else 0])
    with pytest.raises(UserError, match=message) as refused:
        function(model, *[0.5] * (function is prune))
    assert "\n" not in str(refused.value)


def test_a_pruned_head_and_a_pruned_bias_are_no_obstacle() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    torch_prune.random_unstructured(model[1], "weight", 0.5)
    torch_prune.random_unstructured(model[0], "bias", 0.5)
    assert sizes(model) == {"0.weight": 16}
    assert isinstance(prune(model, 0.5), Mask)
