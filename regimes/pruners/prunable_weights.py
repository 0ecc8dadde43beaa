"""The weights of a network that can be pruned, and the reasons why the others cannot."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from regimes.errors import UserError

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
BIASES = "biases and norms"
OWN = " (own parameter)"
MAX_OWN = 4  # own parameters that are listed by name
# {suffix of a parameter or buffer that an old hook adds: (what the hook does, what to do about it)}
HOOKS = {
    "_mask": ("pruned by torch.nn.utils.prune", "make that permanent first: torch.nn.utils.prune.remove({})"),
    "_g": ("under the old hook of weight norm", "use torch.nn.utils.parametrizations.weight_norm({})"),
    "_orig": ("under the old hook of spectral norm", "use torch.nn.utils.parametrizations.spectral_norm({})"),
}


def prunable(model: nn.Module, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """Return the prunable weights by parameter name; see `prunable_weights`.

    Raises:
        UserError: there are none, or a layer's weight cannot be masked.
    """
    weights = prunable_weights(model, embeddings)
    if not weights:
        raise UserError(
            f"{type(model).__name__} has no prunable layer: no convolution, linear, recurrent or attention layer "
            "except the last one"
        )
    return weights


def prunable_weights(model: nn.Module, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """Return the prunable weights by parameter name; there may be none.

    They are the weight matrices of linear, convolutional (transposed, too), recurrent and attention layers, frozen ones
    included; of embeddings on request. Spared are the head, all biases and norms (Zhou et al. 2023), and parameters of
    the user's own modules. The head is the linear or convolutional layer that the model defines last; the first
    convolution and 1x1 shortcuts are prunable. A weight that several layers share counts once, and is spared if the
    head or a spared embedding is among them. Of a layer with spectral or weight norm
    (`torch.nn.utils.parametrizations`) it is the original weight that is masked: where that is 0, the weight is.

    Raises:
        UserError: a layer's weight is made in another way (an unknown parametrisation, an old hook).
    """
    return _weights(model, embeddings, strict=True)


def hidden_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of `prunable_weights`, but for those that cannot be masked, which are left out."""
    return _weights(model, embeddings=False, strict=False)


def _weights(model: nn.Module, embeddings: bool, strict: bool) -> dict[str, nn.Parameter]:
    head = head_of(model)[1]
    names = {id(each): name for name, each in model.named_parameters()}
    spared = _ids(head) | (set() if embeddings else _embedding_ids(model))
    weights = {}
    for where, module in model.named_modules():
        if module is head or (isinstance(module, EMBEDDINGS) and not embeddings):
            continue
        for tensor in _weight_names(module):
            try:
                weight = _weight(module, tensor, where)
            except UserError:
                if strict:
                    raise
                continue
            if weight is not None and id(weight) not in spared:
                weights[names[id(weight)]] = weight
    return weights


@dataclass(frozen=True)
class Coverage:
    """Numbers of the parameters of a network that can be pruned, and of those that cannot.

    Attributes:
        prunable: number of prunable weights.
        parameters: number of all parameters.
        left_out: {reason: number of parameters that are not prunable}; last those of the user's own modules by name.
    """

    prunable: int
    parameters: int
    left_out: dict[str, int]

    @property
    def text(self) -> str:
        """The numbers in a line."""
        further = [reason for reason in self.left_out if reason.endswith(OWN)][MAX_OWN:]
        parts = [f"{reason} {count:,}" for reason, count in self.left_out.items() if reason not in further]
        if further:
            parts.append(f"{len(further)} more own parameters {sum(self.left_out[each] for each in further):,}")
        return f"{self.prunable:,} of {self.parameters:,} weights; not: {', '.join(parts) or 'none'}"

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes and the text, for JSON."""
        return {**dataclasses.asdict(self), "text": self.text}


def coverage(model: nn.Module, embeddings: bool = False) -> Coverage:
    """Return the numbers of a model's prunable parameters, and of the others by reason; see `prunable_weights`."""
    weights = prunable_weights(model, embeddings)
    where, head = head_of(model)
    embedded = dict.fromkeys(_embedding_ids(model), "embeddings")
    reasons = {**embedded, **dict.fromkeys(_ids(head), f"head ({where})")}
    left_out: Counter[str] = Counter()
    for name, each in model.named_parameters():
        if name in weights:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        matrix = sum(size > 1 for size in each.shape) > 1 and not type(owner).__name__.endswith("Norm")
        layer_weight = id(each) in reasons and each.dim() > 1
        reason = reasons[id(each)] if layer_weight else name + OWN if matrix else BIASES
        left_out[reason] += each.numel()
    largest_first = sorted(left_out.items(), key=lambda item: (item[0].endswith(OWN), -item[1]))
    return Coverage(_size(weights.values()), _size(model.parameters()), dict(largest_first))


def without_parametrizations(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parametrised weights are plain ones of the same value; the model if it has none.

    `plain_name` gives the names in the copy.
    """
    if not any(parametrize.is_parametrized(module) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            steps: Any = module._modules["parametrizations"]
            steps.eval()  # spectral norm would take a step of power iteration
            values = {tensor: getattr(module, tensor).detach() for tensor in steps}
            # As torch's `remove_parametrizations`, which changes the class that the original layer shares.
            module.__class__ = type(module).__bases__[0]
            del module._modules["parametrizations"]
            for tensor, value in values.items():
                setattr(module, tensor, nn.Parameter(value))
    return plain


def plain_name(name: str) -> str:
    """Return the name of the weight that a parametrisation makes of the parameter ``name``."""
    return re.sub(r"\bparametrizations\.(\w+)\.original[01]?$", r"\1", name)


def needed_by_norm(model: nn.Module, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mark, by parameter name, the weights that stay at any density, so that no norm that divides them becomes 0.

    These are the best weight of every channel under weight norm, and of a layer under spectral norm; other layers are
    left out.
    """
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in scores}
    return {
        name: _best_by_norm(steps[0], scores[name])
        for name, steps in owners.items()
        if isinstance(steps, parametrize.ParametrizationList)
    }


def _best_by_norm(norm: nn.Module, scores: Tensor) -> Tensor:
    """Mark the best score of everything that is divided by one norm."""
    dim = norm.dim if isinstance(norm, _WeightNorm) else -1  # -1: one norm of the whole weight
    channels = scores[None] if dim == -1 else scores.movedim(dim, 0)
    flat = channels.flatten(1)
    best = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.argmax(dim=1, keepdim=True), True)
    needed = best.view(channels.shape)
    return needed[0] if dim == -1 else needed.movedim(0, dim)


def head_of(model: nn.Module) -> tuple[str, nn.Module | None]:
    """Return the name of the head and the head, the linear or convolutional layer that the model defines last."""
    layers = [(name, each) for name, each in model.named_modules() if isinstance(each, (nn.Linear, _ConvNd))]
    return layers[-1] if layers else ("", None)


def _weight_names(module: nn.Module) -> Iterable[str]:
    """Names of the weight matrices that a layer of a known kind may have."""
    if isinstance(module, (nn.Linear, _ConvNd, *EMBEDDINGS)):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION_WEIGHTS
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight_")]
    return ("weight_ih", "weight_hh") if isinstance(module, nn.RNNCellBase) else ()


def _weight(module: nn.Module, tensor: str, where: str) -> nn.Parameter | None:
    """The parameter that is masked to prune a layer's weight; None if the layer has no such weight."""
    if parametrize.is_parametrized(module, tensor):
        steps: Any = module.parametrizations[tensor]  # type: ignore[index]
        if len(steps) == 1 and isinstance(steps[0], _SpectralNorm):
            return cast(nn.Parameter, steps.original)
        if len(steps) == 1 and isinstance(steps[0], _WeightNorm):
            return cast(nn.Parameter, steps.original1)
        raise UserError(
            f"layer '{where}' cannot be pruned: its {tensor} is made by {type(steps[0]).__name__}, allowed is one "
            "spectral or weight norm; call torch.nn.utils.parametrize.remove_parametrizations(layer, "
            f"'{tensor}') first"
        )
    if tensor not in module._parameters:
        for suffix, (state, remedy) in HOOKS.items():
            if hasattr(module, tensor + suffix):
                call = f"layer, '{tensor}'"
                raise UserError(f"layer '{where}' cannot be pruned: its {tensor} is {state}; {remedy.format(call)}")
    return module._parameters.get(tensor)


def _ids(module: nn.Module | None) -> set[int]:
    return {id(each) for each in module.parameters()} if module is not None else set()


def _embedding_ids(model: nn.Module) -> set[int]:
    return {key for each in model.modules() if isinstance(each, EMBEDDINGS) for key in _ids(each)}


def _size(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)
