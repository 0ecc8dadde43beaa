"""Kinds of networks that users bring, each small enough for its whole Hessian in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from regimes.data.dataset import Dataset, Split
from regimes.data.inputs import Inputs, TensorGroup
from regimes.models.build import seeded

INPUTS = 24
CLASSES = 3
TOKENS = 5  # length of a sequence
VOCABULARY = 7


@dataclass(frozen=True)
class Kind:
    """A network, data that suit it, and what an independent reckoning needs.

    Attributes:
        make: builds the network from torch's global generator.
        inputs: inputs (n, ...).
        targets: targets (n, ...).
        loss: loss of the network.
        wrong: (outputs, targets) -> the error, reckoned here.
    """

    make: Callable[[], nn.Module]
    inputs: Inputs
    targets: Tensor
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    wrong: Callable[[Any, Tensor], Tensor] = lambda outputs, targets: (outputs.argmax(1) != targets).double().mean()

    def network(self, seed: int = 0) -> nn.Module:
        """A network in float64, its weights drawn from a seed."""
        with seeded(seed):
            made = self.make()
        return made.to(torch.float64) if not any(each.is_complex() for each in made.parameters()) else made

    @property
    def split(self) -> Split:
        """Inputs and targets."""
        return Split(self.inputs, self.targets)


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _choose(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(2))


class Attention(nn.Module):
    """A transformer block with linear layers of its own for queries, keys and values."""

    def __init__(self, width: int = 4, outputs: int = CLASSES, per_token: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.norm, self.query, self.key = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 6), nn.Linear(6, width), nn.Linear(width, outputs)
        self.per_token = per_token

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm(x)
        q, k, v = (each(y)[:, None] for each in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        x = x + self.down(F.gelu(self.up(x)))
        logits: Tensor = self.head(x if self.per_token else x.mean(dim=1))
        return logits


class Encoder(nn.Module):
    """An embedding, `nn.TransformerEncoder` with a padding mask, and a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.head(self.encoder(self.embed(tokens), src_key_padding_mask=padding_mask).mean(dim=1))
        return found


class Recurrent(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(3, 4, batch_first=True), nn.Linear(4, CLASSES)  # type: ignore[call-arg]

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(inputs)[0][:, -1])
        return found


class Bag(nn.Module):
    """A mean of embeddings, by a layer that torch cannot differentiate twice, or in plain operations."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = False
        self.bag, self.head = nn.EmbeddingBag(VOCABULARY, 4, mode="mean"), nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        bag = F.embedding(tokens, self.bag.weight).mean(dim=1) if self.plain else self.bag(tokens)
        found: Tensor = self.head(bag)
        return found


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, 4), nn.Linear(4, VOCABULARY)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.mix(self.embed(tokens))))
        return found


class Two(nn.Module):
    """Takes two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.left(left) + self.right(right)))
        return found


class Complex(nn.Module):
    """Complex weights; the logits are absolute values."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5, dtype=torch.complex128)
        self.head = nn.Linear(5, CLASSES, dtype=torch.complex128)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.view_as_real(self.head(torch.tanh(self.body(inputs.to(self.body.weight.dtype))))).norm(dim=-1)


class Transposed(nn.Module):
    """Narrows and widens images; one class per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 3, 2, stride=2), nn.ConvTranspose2d(3, 3, 2, stride=2)
        self.head = nn.Conv2d(3, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.up(torch.relu(self.down(images)))))
        return found


def _mlp(outputs: int = CLASSES, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, outputs))


def _cnn(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), norm(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def _depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 5, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES),
    )  # fmt: skip


def _spectral() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, CLASSES)).double()


def _frozen() -> nn.Module:
    made = _mlp()
    made[0].weight.requires_grad_(False)  # type: ignore[index,union-attr,operator]
    return made


def _vit() -> nn.Module:
    from regimes.torchvision_import import torchvision

    made: nn.Module = torchvision().models.vision_transformer.VisionTransformer(
        image_size=6, patch_size=3, num_layers=1, num_heads=2, hidden_dim=4, mlp_dim=6, num_classes=CLASSES
    )
    nn.init.normal_(made.heads.head.weight, std=0.5)  # type: ignore[union-attr,arg-type]
    return made


def _bert() -> nn.Module:
    from regimes.torchvision_import import torchvision

    torchvision()  # transformers imports it
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
        max_position_embeddings=TOKENS, num_labels=CLASSES, initializer_range=0.5, type_vocab_size=1,
    )  # fmt: skip
    made: nn.Module = transformers.BertForSequenceClassification(config)
    return made


def _per_token(outputs: Tensor, targets: Tensor) -> Tensor:
    counted = targets != -100
    return (outputs.argmax(-1) != targets)[counted].double().mean()


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0) != (targets.reshape(outputs.shape) > 0.5)).double().mean()


def _token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets)


def _logit_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), targets.to(outputs.dtype))


VECTORS, IMAGES = _draw(INPUTS, 4), _draw(INPUTS, 1, 6, 6)
WORDS, MASK = _choose(VOCABULARY, INPUTS, TOKENS), torch.zeros(INPUTS, TOKENS, dtype=torch.bool)
MASK[::2, 3:] = True  # half of the sequences are shorter
LABELS = _choose(CLASSES, INPUTS)
NEXT = _choose(VOCABULARY, INPUTS, TOKENS).masked_fill(MASK, -100)

KINDS: dict[str, Kind] = {
    "mlp": Kind(_mlp, VECTORS, LABELS),
    "tanh": Kind(lambda: _mlp(activation=nn.Tanh), VECTORS, LABELS),
    "batch-norm": Kind(lambda: _cnn(nn.BatchNorm2d), IMAGES, LABELS),
    "group-norm": Kind(lambda: _cnn(lambda width: nn.GroupNorm(2, width)), IMAGES, LABELS),
    "layer-norm": Kind(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), _mlp_tail()), VECTORS, LABELS),
    "instance-norm": Kind(lambda: _cnn(lambda width: nn.InstanceNorm2d(width, affine=True)), IMAGES, LABELS),
    "depthwise": Kind(_depthwise, IMAGES, LABELS),
    "transposed": Kind(Transposed, IMAGES, _choose(CLASSES, INPUTS, 6, 6)),
    "vit": Kind(_vit, _draw(INPUTS, 3, 6, 6), LABELS),
    "encoder": Kind(Encoder, WORDS, LABELS),
    "attention": Kind(Attention, WORDS, LABELS),
    "bert": Kind(_bert, TensorGroup({"input_ids": WORDS, "attention_mask": (~MASK).long()}), LABELS),
    "lstm": Kind(lambda: Recurrent(nn.LSTM), _draw(INPUTS, TOKENS, 3), LABELS),
    "gru": Kind(lambda: Recurrent(nn.GRU), _draw(INPUTS, TOKENS, 3), LABELS),
    "embedding-bag": Kind(Bag, WORDS, LABELS),
    "tied": Kind(Tied, WORDS, NEXT, _token_loss, _per_token),
    "two-inputs": Kind(Two, TensorGroup([VECTORS, _draw(INPUTS, 3)]), LABELS),
    "dict": Kind(Encoder, TensorGroup({"tokens": WORDS, "padding_mask": MASK}), LABELS),
    "per-token": Kind(lambda: Attention(outputs=VOCABULARY, per_token=True), WORDS, NEXT, _token_loss, _per_token),
    "square": Kind(  # as many tokens as classes
        lambda: Attention(outputs=TOKENS, per_token=True),
        WORDS,
        _choose(TOKENS, INPUTS, TOKENS),
        _token_loss,
        _per_token,
    ),
    "one-logit": Kind(lambda: _mlp(1), VECTORS, _choose(2, INPUTS), _logit_loss, _binary),
    "multi-label": Kind(lambda: _mlp(3), VECTORS, _choose(2, INPUTS, 3).double(), _logit_loss, _binary),
    "regression": Kind(lambda: _mlp(2), VECTORS, _draw(INPUTS, 2), F.mse_loss, F.mse_loss),
    "spectral-norm": Kind(_spectral, VECTORS, LABELS),
    "frozen": Kind(_frozen, VECTORS, LABELS),
    "complex": Kind(Complex, VECTORS, LABELS),
}


def _mlp_tail() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Linear(6, CLASSES))


# Kinds that a part of the package refuses, with what its one line says where a test reads it.
NO_HESSIAN = {"complex": "float32 or float64", "embedding-bag": "second derivatives.*embedding_bag"}
NO_FISHER = {
    "complex": "float32 or float64",
    "per-token": "mean of per-input losses",
    "tied": "mean of per-input losses",
    "lstm": "Batching rule",
    "gru": "Batching rule",
    "bert": "data-dependent",
}
NO_GRADIENT_PRUNERS = {"complex": "needs real weights"}
NOT_STACKED = {"tied", "lstm", "gru", "bert", "group-norm", "spectral-norm"}  # trained one by one
NOT_NARROWED = {"group-norm", "vit", "encoder", "dict", "lstm", "gru", "embedding-bag", "tied", "spectral-norm"}
NOT_SHRUNK = NOT_NARROWED - {"encoder", "dict"}
NOT_DISCOVERED = {
    "group-norm", "layer-norm", "instance-norm", "transposed", "bert", "lstm", "gru", "embedding-bag", "tied",
    "two-inputs", "spectral-norm",
}  # fmt: skip

# -- as a data set and a model of a sweep ------------------------------------------------------------------------------

LOSS_NAMES = {_logit_loss: "binary-cross-entropy", F.mse_loss: "mse"}  # of the others: cross-entropy


def data(kind: str, repeats: int = 4) -> Dataset:
    """A data set of a kind: its inputs several times over."""
    found = KINDS[kind]
    rows = torch.arange(INPUTS).repeat(repeats)
    targets = found.targets.float() if found.loss is _logit_loss and found.targets.dim() == 2 else found.targets
    held, test = (
        each.tensors if isinstance(each, TensorGroup) else each for each in (found.inputs[rows], found.inputs)
    )
    return Dataset.from_arrays(train=(held, targets[rows]), test=(test, targets), val=(test, targets), title=kind)


def net(input_shape: Any, classes: int, kind: str) -> nn.Module:
    """A network of a kind."""
    return KINDS[kind].make()
