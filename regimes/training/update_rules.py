"""Update rules: what SGD, Adam, AdamW and Muon do to the weights, given their gradients.

These are torch's functional forms; its classes would load torch's compiler at first use, more than a second in every
process. A step inside a CUDA graph takes its learning rate from a tensor on the device, which torch's forms would copy
to the host; `Sgd` and `Adam` have a form of their own for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS, EPS, muon
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from regimes.config.recipe import Recipe
from regimes.pruners.prunable_weights import hidden_weights

Named = Mapping[str, Tensor]
MEAN, SQUARE = "exp_avg/", "exp_avg_sq/"  # prefixes of Adam's buffers


class Sgd:
    """SGD, with momentum and weight decay as a gradient.

    Attributes:
        buffers: the optimiser's state, by name; see `parameter_of`.
        mixes: whether the update of one weight depends on other weights of its tensor.
    """

    mixes = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, moved: Named, gradients: Named, learning_rate: float | Tensor, number: int | Tensor) -> None:
        """Update parameters in place; ``number`` is that of the step: 0, 1, ..."""
        if isinstance(learning_rate, Tensor):
            self._on_device(moved, gradients, learning_rate)
            return
        buffers = [self.buffers.get(name) for name in moved]
        sgd(
            list(moved.values()),
            list(gradients.values()),
            buffers,
            lr=learning_rate,
            momentum=self.recipe.momentum,
            nesterov=self.recipe.nesterov,
            weight_decay=self.recipe.weight_decay,
            dampening=0.0,
            maximize=False,
            foreach=True,
        )
        if self.recipe.momentum:
            self.buffers.update((name, each) for name, each in zip(moved, buffers, strict=True) if each is not None)

    def _on_device(self, moved: Named, gradients: Named, learning_rate: Tensor) -> None:
        recipe, weights = self.recipe, list(moved.values())
        direction = list(torch._foreach_add(list(gradients.values()), weights, alpha=recipe.weight_decay))
        if recipe.momentum:
            buffers = [self.buffers[name] for name in moved]
            torch._foreach_mul_(buffers, recipe.momentum)
            torch._foreach_add_(buffers, direction)
            direction = (
                list(torch._foreach_add(direction, buffers, alpha=recipe.momentum)) if recipe.nesterov else buffers
            )
        torch._foreach_add_(weights, list(torch._foreach_mul(direction, -learning_rate)))


class Adam:
    """Adam, and AdamW, whose weight decay is decoupled; bias correction by the number of the step.

    Args:
        recipe: the training recipe.
        parameters: the parameters by name.
        decoupled: whether weight decay is decoupled.
    """

    mixes = False

    def __init__(self, recipe: Recipe, parameters: Named, decoupled: bool) -> None:
        self.recipe, self.decoupled = recipe, decoupled
        self.buffers = {
            f"{slot}{name}": torch.zeros_like(p) for slot in (MEAN, SQUARE) for name, p in parameters.items()
        }

    def __call__(self, moved: Named, gradients: Named, learning_rate: float | Tensor, number: int | Tensor) -> None:
        """Update parameters in place; see `Sgd`."""
        means, squares = (_real(self.buffers[f"{slot}{name}"] for name in moved) for slot in (MEAN, SQUARE))
        weights, real_gradients = _real(moved.values()), _real(gradients.values())
        if isinstance(learning_rate, Tensor):
            assert isinstance(number, Tensor)
            self._on_device(weights, real_gradients, means, squares, learning_rate, number)
            return
        adam(
            weights,
            real_gradients,
            means,
            squares,
            [],
            list(torch.full((len(moved),), float(number)).unbind()),  # torch's form advances each
            beta1=self.recipe.beta1,
            beta2=self.recipe.beta2,
            eps=self.recipe.eps,
            lr=learning_rate,
            weight_decay=self.recipe.weight_decay,
            decoupled_weight_decay=self.decoupled,
            amsgrad=False,
            maximize=False,
            foreach=True,
        )

    def _on_device(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        learning_rate: Tensor,
        number: Tensor,
    ) -> None:
        recipe = self.recipe
        taken = number.double() + 1  # in float32, 1 - beta2 ** 1 would lose four digits
        corrections = [(1 - beta**taken).to(learning_rate) for beta in (recipe.beta1, recipe.beta2)]
        if recipe.weight_decay and self.decoupled:
            torch._foreach_mul_(weights, 1 - learning_rate * recipe.weight_decay)
        elif recipe.weight_decay:
            gradients = list(torch._foreach_add(gradients, weights, alpha=recipe.weight_decay))
        torch._foreach_lerp_(means, gradients, 1 - recipe.beta1)
        torch._foreach_mul_(squares, recipe.beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - recipe.beta2)
        scale = list(torch._foreach_sqrt(squares))
        torch._foreach_div_(scale, corrections[1].sqrt())
        torch._foreach_add_(scale, recipe.eps)
        step = list(torch._foreach_mul(means, -learning_rate / corrections[0]))
        torch._foreach_addcdiv_(weights, step, scale)


def _real(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Complex tensors as views of real ones, the last dimension being real and imaginary part; others as they are."""
    return [torch.view_as_real(each) if each.is_complex() else each for each in tensors]


class Muon:
    """Muon for the hidden weight matrices (`hidden_matrices`), AdamW for everything else, as its authors advise.

    A convolution is the matrix of its output channels. One learning rate and weight decay serve both, by the adjustment
    that gives Muon's update the size of AdamW's (Liu et al. 2025, arXiv 2502.16982).
    """

    mixes = True

    def __init__(self, recipe: Recipe, parameters: Named, hidden: frozenset[str]) -> None:
        self.recipe, self.hidden = recipe, hidden
        self.rest = Adam(recipe, {name: each for name, each in parameters.items() if name not in hidden}, True)
        self.buffers = self.rest.buffers
        self.buffers.update((name, torch.zeros_like(each)) for name, each in parameters.items() if name in hidden)

    def __call__(self, moved: Named, gradients: Named, learning_rate: float | Tensor, number: int | Tensor) -> None:
        """Update parameters in place; see `Sgd`."""
        assert not isinstance(learning_rate, Tensor)
        rest = [name for name in moved if name not in self.hidden]
        self.rest({n: moved[n] for n in rest}, {n: gradients[n] for n in rest}, learning_rate, number)
        hidden = [name for name in moved if name in self.hidden]
        tensors = [[each[name] for name in hidden] for each in (moved, gradients, self.buffers)]
        matrices = [[each.flatten(1) for each in part] for part in tensors]  # views, but of channels_last
        muon(
            *matrices,
            lr=learning_rate,
            weight_decay=self.recipe.weight_decay,
            momentum=self.recipe.momentum,
            nesterov=self.recipe.nesterov,
            ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
            ns_steps=DEFAULT_NS_STEPS,
            eps=EPS,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
        for part in (0, 2):
            for tensor, matrix in zip(tensors[part], matrices[part], strict=True):
                if matrix.data_ptr() != tensor.data_ptr():
                    tensor.copy_(matrix.view_as(tensor))


def update_rule(model: nn.Module, recipe: Recipe) -> Sgd | Adam | Muon:
    """Return the update rule of a recipe's optimiser for a model's trainable parameters."""
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if recipe.optimizer == "sgd":
        return Sgd(recipe)
    if recipe.optimizer == "muon":
        return Muon(recipe, parameters, hidden_matrices(model))
    return Adam(recipe, parameters, decoupled=recipe.optimizer == "adamw")


def hidden_matrices(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that Muon updates: the weight matrices of hidden layers.

    These are the weights of linear, convolutional, recurrent and attention layers but the head; not of embeddings, nor
    a weight that the head shares with one, nor parameters of the user's own modules (positions, a class token).
    """
    return frozenset(name for name, each in hidden_weights(model).items() if each.dim() > 1)


def parameter_of(buffer: str) -> str:
    """Return the name of the parameter that a buffer belongs to."""
    return buffer.removeprefix(SQUARE).removeprefix(MEAN)


def buffers_per_weight(recipe: Recipe) -> int:
    """Return the number of buffers that a weight has at most."""
    return 1 if recipe.optimizer == "sgd" else 2
