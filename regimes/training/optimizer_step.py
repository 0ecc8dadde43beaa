"""Optimisation step, plain or sharpness-aware (SAM), with clipping, on the live weights only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_

from regimes.config.recipe import Recipe
from regimes.pruners.mask import Mask
from regimes.training.update_rules import parameter_of, update_rule


class OptimizerStep:
    """Optimiser of one network under a recipe and, if it is pruned, a mask.

    Gradients of masked weights are set to zero before use, so that neither momentum, weight decay nor the ascent of SAM
    moves a masked weight away from zero.

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
        self.rule = update_rule(model, recipe)

    def __call__(self, loss: Callable[[], Tensor], learning_rate: float | Tensor, number: int | Tensor = 0) -> Tensor:
        """Take one step on ``loss()`` and return the loss before it, as a tensor on the device.

        The learning rate and the step's number (0, 1, ...; of no account for SGD) may be tensors on the device, as in a
        captured step; momentum buffers must then exist already.
        """
        before = self._backward(loss)
        if self.recipe.sam_rho:
            self._sharpness_aware(loss)
        if self.recipe.clip_norm:
            clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self._down(learning_rate, number)
        return before

    @torch.no_grad()
    def _down(self, learning_rate: float | Tensor, number: int | Tensor) -> None:
        moved = {name: each for name, each in self.named.items() if each.grad is not None}
        gradients = {name: each.grad for name, each in moved.items() if each.grad is not None}
        self.rule(moved, gradients, learning_rate, number)
        if self.rule.mixes and self.masked:
            torch._foreach_mul_(list[Tensor](self.masked), self.factors)

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
        """Return the optimiser's buffers; with the weights and the step's number, they are its whole state.

        Each has the shape of a parameter and its name; that of a second one has a prefix, see `parameter_of`.
        """
        return dict(self.rule.buffers)

    def set_momentum(self, buffers: dict[str, Tensor]) -> None:
        """Restore the optimiser's buffers, to resume a training exactly."""
        for name, buffer in buffers.items():
            self.rule.buffers[name] = buffer.to(self.named[parameter_of(name)]).clone()
