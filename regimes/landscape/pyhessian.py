"""Patched PyHessian 0.1 as a reference backend: an independent implementation to compare with.

Patches, all applied to a copy of the user's model:

- A second object on the same model returns a doubled Hessian, because gradients accumulate: they are set to None first.
- ``trace()`` may stop after two probes, and always does when the running mean is negative: a fixed count is forced.
- It uses CUDA by default, leaves the model in eval mode and fails on parameters that the loss does not use.
- It does not support masks: masked weights become ``weight * mask``, whose Hessian is zero on pruned coordinates.
- It draws from torch's global generator: the generator is seeded, and its state restored afterwards.
- It reports no standard error: it is computed from the probes it returns.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regimes.data.inputs import Inputs, call
from regimes.errors import UserError
from regimes.landscape.estimate import Estimate
from regimes.landscape.hessian_operator import dense_gradients
from regimes.landscape.metric import LossFn
from regimes.losses.functions import loss_value
from regimes.models.build import seeded
from regimes.pruners.mask import Mask


def reference_trace(
    model: nn.Module,
    loss_fn: LossFn,
    data: tuple[Inputs, Tensor],
    mask: Mask | Mapping[str, Tensor] | None,
    probes: int,
    generator: torch.Generator,
) -> Estimate:
    """Return the trace by PyHessian's Hutchinson estimator, with a fixed number of probes."""
    with _reference(model, loss_fn, data, mask) as reference, _drawn_from(generator):
        # No ratio is below minus infinity, so exactly `probes` are drawn, whatever the sign of the running mean.
        return Estimate.mean([float(each) for each in reference.trace(maxIter=probes, tol=-math.inf)], "nat")


def reference_top(
    model: nn.Module,
    loss_fn: LossFn,
    data: tuple[Inputs, Tensor],
    mask: Mask | Mapping[str, Tensor] | None,
    tolerance: float,
    max_steps: int,
    generator: torch.Generator,
) -> Estimate:
    """Return the eigenvalue of largest *magnitude*, positive or negative, by PyHessian's power iteration.

    The field ``stderr`` holds the residual of the eigenvector, ``samples`` the largest number of steps.
    """
    with _reference(model, loss_fn, data, mask) as reference, _drawn_from(generator):
        (value,), (vector,) = reference.eigenvalues(maxIter=max_steps, tol=tolerance, top_n=1)
        images = torch.autograd.grad(reference.gradsH, reference.params, vector, retain_graph=True)
        residual = sum(float((image - value * part).square().sum()) for image, part in zip(images, vector, strict=True))
        return Estimate(float(value), residual**0.5, max_steps, "nat")


class _reference:  # noqa: N801 - used as a function
    """A PyHessian object on a masked copy of the model, its gradient graph freed on leaving."""

    def __init__(self, model: nn.Module, loss_fn: LossFn, data: tuple[Inputs, Tensor], mask: Any) -> None:
        copied = copy.deepcopy(model).eval()
        copied.zero_grad(set_to_none=True)
        with dense_gradients(copied):
            self._freeze_unused(copied, loss_fn, data)
        layers = mask.layers if isinstance(mask, Mask) else dict(mask or {})
        for name, layer in layers.items():
            owner, _, leaf = name.rpartition(".")
            parametrize.register_parametrization(copied.get_submodule(owner), leaf, _Times(layer))
        if not isinstance(data[0], Tensor):
            raise UserError("hessian.backend = 'pyhessian' takes inputs of one tensor; use the backend 'own'")
        self.model, self.data = copied, (data[0], data[1])
        self.loss_fn = lambda outputs, targets: loss_value(loss_fn, outputs, targets)

    def __enter__(self) -> Any:
        from pyhessian import hessian

        with dense_gradients(self.model), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*backward.*create_graph.*")
            return hessian(self.model, self.loss_fn, data=self.data, cuda=self.data[0].is_cuda)

    def __exit__(self, *exception: object) -> None:
        self.model.zero_grad(set_to_none=True)

    @staticmethod
    def _freeze_unused(model: nn.Module, loss_fn: LossFn, data: tuple[Inputs, Tensor]) -> None:
        trained = [each for each in model.parameters() if each.requires_grad]
        if not trained:
            raise UserError("every parameter of the model is frozen (requires_grad=False): the Hessian is empty")
        loss = loss_value(loss_fn, call(model, data[0][:2]), data[1][:2])
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
            if gradient is None:
                parameter.requires_grad_(False)


class _Times(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = nn.Buffer(mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def _drawn_from(generator: torch.Generator) -> Any:
    return seeded(int(torch.randint(0, 2**31, (), generator=generator)))
