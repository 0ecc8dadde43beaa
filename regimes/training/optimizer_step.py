"""Optimisation step: SGD or sharpness-aware minimisation (SAM), on the live weights only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.sgd import sgd

from regimes.config.recipe import Recipe
from regimes.pruners.mask import Mask


class OptimizerStep:
    """Optimiser of one network under a recipe and, if it is pruned, a mask.

    This is torch's functional SGD; the class would load torch's compiler at first use, more than a second in every
    process. Gradients of masked weights are set to zero before use, so that neither momentum, weight decay nor the
    ascent of SAM moves a masked weight away from zero.

    Args:
        model: the network; its parameters are changed by every step.
        recipe: the training recipe.
        mask: the live weights; None: all.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, mask: Mask | None) -> None:
        self.model = model
        self.recipe = recipe
        self.named = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.parameters: list[Tensor] = list(self.named.values())
        self.masked, self.factors = mask.factors(model) if mask else ([], [])
        self.norms = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
        self.buffers: dict[str, Tensor] = {}  # momentum, by parameter name

    def __call__(self, loss: Callable[[], Tensor], learning_rate: float | Tensor) -> Tensor:
        """Take one step on ``loss()`` and return the loss before it, as a tensor on the device.

        The learning rate may be a tensor on the device, as in a captured step; momentum buffers must then exist
        already.
        """
        before = self._backward(loss)
        if self.recipe.sam_rho:
            self._sharpness_aware(loss)
        self._down(learning_rate)
        return before

    @torch.no_grad()
    def _down(self, learning_rate: float | Tensor) -> None:
        moved = {name: each for name, each in self.named.items() if each.grad is not None}
        gradients = [each.grad for each in moved.values() if each.grad is not None]
        if isinstance(learning_rate, Tensor):
            self._down_on_device(learning_rate, moved, gradients)
            return
        buffers = [self.buffers.get(name) for name in moved]
        sgd(
            list(moved.values()),
            gradients,
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

    def _down_on_device(self, learning_rate: Tensor, moved: Mapping[str, Tensor], gradients: list[Tensor]) -> None:
        """SGD as in torch, whose own version would copy the learning rate to the host."""
        recipe, weights = self.recipe, list(moved.values())
        direction = list(torch._foreach_add(gradients, weights, alpha=recipe.weight_decay))
        if recipe.momentum:
            buffers = [self.buffers[name] for name in moved]
            torch._foreach_mul_(buffers, recipe.momentum)
            torch._foreach_add_(buffers, direction)
            direction = (
                list(torch._foreach_add(direction, buffers, alpha=recipe.momentum)) if recipe.nesterov else buffers
            )
        torch._foreach_add_(weights, list(torch._foreach_mul(direction, -learning_rate)))

    def _backward(self, loss: Callable[[], Tensor]) -> Tensor:
        for each in self.parameters:
            each.grad = None
        value = loss()
        value.backward()
        gradients = [(each.grad, factor) for each, factor in zip(self.masked, self.factors, strict=True)]
        present = [(gradient, factor) for gradient, factor in gradients if gradient is not None]
        if present:
            torch._foreach_mul_(*(list(each) for each in zip(*present, strict=True)))
        return value.detach()

    @torch.no_grad()
    def _sharpness_aware(self, loss: Callable[[], Tensor]) -> None:
        """Replace the gradient by the one at ``w + rho g/|g|`` (Foret et al. 2021), BatchNorm statistics untouched."""
        moved = [each for each in self.parameters if each.grad is not None]
        here = [each.clone() for each in moved]
        gradients = [each.grad for each in moved if each.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        ascent = torch._foreach_mul(gradients, self.recipe.sam_rho / (norm + 1e-12))
        torch._foreach_add_(moved, list(ascent))
        with self.statistics_frozen(), torch.enable_grad():
            self._backward(loss)
        torch._foreach_copy_(moved, here)

    @contextmanager
    def statistics_frozen(self) -> Iterator[None]:
        """Context manager in which BatchNorm uses batch statistics without updating its running ones."""
        for norm in self.norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in self.norms:
                norm.track_running_stats = True

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum buffers by parameter name; with the weights, they are the whole optimiser state."""
        return dict(self.buffers)

    def set_momentum(self, buffers: dict[str, Tensor]) -> None:
        """Restore momentum buffers, to resume a training exactly."""
        for name, buffer in buffers.items():
            self.buffers[name] = buffer.to(self.named[name]).clone()
