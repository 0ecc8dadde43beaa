"""Decomposition of the Hessian into the Gauss-Newton matrix and a rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap
from torch.utils._pytree import tree_map

from regimes.data.inputs import Inputs, TensorGroup, arguments
from regimes.device_faults import reraise_device_fault
from regimes.errors import UserError
from regimes.landscape.error import inputs_per_pass, outputs
from regimes.landscape.hessian_operator import AnyMask, HessianOperator, dense_gradients, twice_differentiable
from regimes.landscape.metric import LossFn
from regimes.losses.functions import logits

GRADIENT_BYTES = {"cpu": 2**25, "cuda": 2**30}  # memory for the per-input gradients of a group of inputs
MAX_ROOT_BYTES = 2**30  # memory for the output Hessians of all inputs
ROOT_COPIES = 5  # temporary copies of the output Hessians
MAX_ROOT_WORK = 2**32  # inputs times outputs cubed; beyond it, matrix roots take longer than probing the whole Hessian
CHECKED_INPUTS = 4  # inputs on which the diagonal of the rest is checked
MAX_NEGATIVE_CURVATURE = 1e-4  # tolerated negative curvature, relative to the largest
DEGENERATE = 1e-6  # relative difference up to which eigenvalues count as equal


class NotSplittable(Exception):
    """The loss or network has no per-input decomposition; the Hessian as a whole can still be probed."""


class GaussNewtonSplit:
    """Decomposition ``H = G + R`` of the Hessian of a mean loss, on the live coordinates, in eval mode.

    With ``J_n`` the Jacobian of the outputs for input n, and ``s_n`` and ``A_n`` the gradient and Hessian of its loss
    with respect to those outputs,

    ``G = mean_n J_n' A_n J_n``  (generalised Gauss-Newton; for cross-entropy the Fisher matrix)
    ``R = mean_n sum_k s_nk (Hessian of output k)``

    *tr G* needs gradients only: ``tr J' A J = sum_c |J' a_c|^2`` over the columns a_c of a root of A. One pass per
    column is exact; random combinations of the columns estimate it, drawn independently for every input, so that errors
    average out over the inputs too. The columns are eigenvectors of A times the roots of their eigenvalues; those of
    A's symmetric root would be as good for the exact value, but draws of them vary more.

    *tr R* is zero if the network is piecewise linear in each parameter tensor alone (layers with ReLU, pooling and
    BatchNorm in eval mode, each tensor used once), because then the diagonal blocks of R vanish. This is checked on a
    few inputs, not assumed (`rest_has_zero_diagonal`). Otherwise R is small if the network fits its data.

    Args:
        model, loss_fn, data, mask, chunk: as in `HessianOperator`.

    Raises:
        NotSplittable: the loss is not a mean of per-input losses, or not convex in the outputs; outputs depend on the
            other inputs; an operation has no batched form; too many outputs.
        UserError: as for `HessianOperator`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: tuple[Inputs, Tensor],
        mask: AnyMask = None,
        chunk: int = 0,
    ) -> None:
        self.model, self.inputs, self.chunk = model, data[0], chunk
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")  # of vmap
                self._take_apart(loss_fn, data, mask)
        except (NotSplittable, UserError):
            raise
        except Exception as broken:  # code not written for single inputs may raise anything
            reraise_device_fault(broken)
            raise NotSplittable((str(broken).splitlines() or [type(broken).__name__])[0]) from None

    def _take_apart(self, loss_fn: LossFn, data: tuple[Inputs, Tensor], mask: AnyMask) -> None:
        try:
            answers = outputs(self.model, data[0])
        except UserError as error:
            raise NotSplittable(str(error)) from None
        slopes, values, vectors = _in_outputs(loss_fn, answers, data[1])
        self.slopes, self.vectors = slopes.to(answers), vectors.to(answers)
        self.roots = (vectors * values[:, None].sqrt()).to(answers)  # (n, outputs, columns)
        level = (values.diff(dim=1, prepend=values[:, :1]) > DEGENERATE * values).cumsum(dim=1)
        self.equal = (level[:, :, None] == level[:, None]).to(answers)  # (n, columns, columns): of equal eigenvalues
        self.rest = HessianOperator(self.model, _linear, (data[0], self.slopes), mask, self.chunk)
        self.columns = self.roots.shape[2]
        alive = self.rest.live.split([leaf.numel() for leaf in self.rest.leaves.values()])
        named = zip(self.rest.leaves, alive, strict=True)
        self.live = {name: part.to(answers) for name, part in named if not part.all()}
        self._weights = {name: leaf.detach() for name, leaf in self.rest.leaves.items()}
        with dense_gradients(self.model), twice_differentiable(), torch.no_grad():
            alone = vmap(lambda x: self._apply(self._weights, x))(arguments(data[0][:CHECKED_INPUTS]))
        together = answers[:CHECKED_INPUTS].reshape(len(alone), -1)
        if not torch.allclose(alone, together, rtol=1e-3, atol=1e-3 * float(answers.abs().max())):
            raise NotSplittable("outputs depend on the other inputs of a batch")
        self._squares(torch.zeros_like(self.roots[:1]).transpose(1, 2)[:, :1])  # an operation may have no batched form

    def _apply(self, weights: dict[str, Tensor], given: Any) -> Tensor:
        args, kwargs = tree_map(lambda each: each[None], given)
        return logits(functional_call(self.model, (weights, self.rest.buffers), args, kwargs))[0].flatten()

    def exact(self) -> Tensor:
        """Return ``tr J_n' A_n J_n`` of every input and parameter tensor (n, tensors)."""
        return self._squares(self.roots.transpose(1, 2))

    def squared_gradients(self) -> Tensor:
        """Return the squared per-input gradient ``|J_n' s_n|^2`` of every input and parameter tensor (n, tensors)."""
        return self._squares(self.slopes[:, None])

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return an unbiased estimate of `exact` (n, tensors), from one random sum of root columns per input.

        A column gets the random sign of ``v'z``, with v its eigenvector and z Gaussian; the d columns of a degenerate
        eigenvalue, with P the projection onto their span, the coefficients of ``sqrt(d) P z / |P z|``. The sum depends
        on A and z alone, not on which eigenvectors a library returns.
        """
        z = torch.randn(*self.roots.shape[:2], 1, generator=generator, dtype=torch.float64).to(self.roots)
        along = self.vectors.transpose(1, 2) @ z  # (n, columns, 1)
        shares = along * (self.equal.sum(dim=2, keepdim=True) / (self.equal @ along.square())).sqrt()
        return self._squares((self.roots @ shares).transpose(1, 2))

    def rest_has_zero_diagonal(self) -> bool:
        """Return whether the diagonal blocks of R are zero, by multiplying each with a random vector on a few inputs.

        If the network is linear in a tensor, the product is exactly zero, in float32 too; any other value, however
        small, gives False. The inputs are the one with the largest norm, a few random ones, and as many of pure noise;
        of integers or several tensors, random ones only.
        """
        random = torch.Generator().manual_seed(0)
        few: Inputs
        if isinstance(self.inputs, TensorGroup) or not self.inputs[:1].is_floating_point():
            chosen = torch.randperm(len(self.inputs), generator=random)[: 2 * CHECKED_INPUTS]
            few = self.inputs[chosen.to(self.inputs.device)]
        else:
            few = self._few_with_noise(random)
        slopes = torch.randn(len(few), self.roots.shape[1], generator=random, dtype=torch.float64).to(self.roots)
        rest = HessianOperator(self.model, _linear, (few, slopes))
        vectors = rest.as_tensors(rest.normal(random))
        return not any(bool(rest.block_product(name, vector).any()) for name, vector in vectors.items())

    def _few_with_noise(self, random: torch.Generator) -> Tensor:
        """A few inputs and as many of noise, which reaches units that the inputs leave saturated."""
        parts: Any = self.inputs.split(1024)
        sizes = torch.cat([part.double().flatten(1).norm(dim=1) for part in parts])
        chosen = {int(sizes.argmax()), *torch.randperm(len(sizes), generator=random)[: CHECKED_INPUTS - 1].tolist()}
        few: Tensor = self.inputs[torch.tensor(sorted(chosen), device=self.inputs.device)]
        noise = torch.randn(few.shape, generator=random, dtype=torch.float64).to(few)
        return torch.cat([few, few.mean() + 2 * few.std() * noise])

    def _squares(self, vectors: Tensor) -> Tensor:
        """``sum_c |J_n' v_nc|^2`` on the live coordinates of each tensor (n, tensors), for vectors (n, c, outputs)."""

        def one(given: Any, columns: Tensor) -> Tensor:
            back: Callable[[Tensor], tuple[dict[str, Tensor]]] = vjp(lambda w: self._apply(w, given), self._weights)[1]
            total = torch.zeros(len(self._weights), device=columns.device, dtype=columns.dtype)
            for column in columns:  # one at a time: they share the forward pass, and memory stays small
                rows = {name: gradient.flatten() for name, gradient in back(column)[0].items()}
                alive = ((row * self.live[name] if name in self.live else row) @ row for name, row in rows.items())
                total = total + torch.stack(list(alive))
            return total

        numbers = self.rest.live.numel()
        group = max(1, GRADIENT_BYTES.get(self.inputs.device.type, 2**25) // (numbers * self.roots.element_size()))
        group = min(group, self.chunk or group, inputs_per_pass(self.inputs))
        with (
            dense_gradients(self.model),
            twice_differentiable(),
            torch.no_grad(),
        ):  # fused attention has no batched form
            parts = zip(self.inputs[: len(vectors)].split(group), vectors.split(group), strict=True)
            try:
                return torch.cat([vmap(one)(arguments(inputs), part) for inputs, part in parts]).double().cpu()
            except (RuntimeError, NotImplementedError) as broken:  # an operation whose derivative has no batched form
                reraise_device_fault(broken)
                raise NotSplittable((str(broken).splitlines() or [""])[0]) from None


def _linear(answers: Any, slopes: Tensor) -> Tensor:
    """Linearised loss, with fixed slopes: its Hessian in the weights is R."""
    return (logits(answers).reshape(slopes.shape) * slopes).sum(dim=1).mean()


def _in_outputs(loss_fn: LossFn, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (n, k) of each input's loss in its k outputs, and eigenvalues (n, c) and eigenvectors (n, k, c) of its
    Hessian in them, without the k - c columns whose eigenvalues are zero for all inputs."""
    count, width = len(answers), answers[0].numel()
    if count * width**2 * 8 * ROOT_COPIES > MAX_ROOT_BYTES or count * width**3 > MAX_ROOT_WORK:
        raise NotSplittable("too many outputs")
    if not answers.isfinite().all():
        raise NotSplittable("outputs are not finite")
    below = 0.0
    try:  # in float64, because the curvature of a nearly zero loss is lost in rounding
        fine = targets.double() if targets.is_floating_point() else targets
        slopes, curved = _derivatives(loss_fn, answers.double(), fine)
    except RuntimeError:  # a loss with tensors of its own
        slopes, curved = _derivatives(loss_fn, answers, targets)
        below = 10 * torch.finfo(answers.dtype).eps
    values, vectors = torch.linalg.eigh(curved.double())
    largest = float(values.max())
    if not float(values.min()) >= -MAX_NEGATIVE_CURVATURE * largest - below:
        raise NotSplittable("the loss is not convex in the outputs")
    idle = int((values <= 1e-9 * largest).all(dim=0).sum())  # eigenvalues ascend: the first ones
    return slopes, values[:, idle:].clamp(min=0), vectors[:, :, idle:]


def _derivatives(loss_fn: LossFn, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """First (n, k) and second (n, k, k) derivatives of the loss of each input in its outputs."""
    count = len(answers)
    flat = answers.reshape(count, -1)

    def single(answer: Tensor, target: Tensor) -> Tensor:
        return loss_fn(answer.view(answers.shape[1:])[None], target[None])

    slopes, curved = vmap(grad(single))(flat, targets), vmap(jacrev(grad(single)))(flat, targets)
    if not (slopes.isfinite().all() and curved.isfinite().all()):
        raise NotSplittable("the loss is not finite")
    _check_mean(loss_fn, answers, targets, slopes)
    # Correct outputs have zero gradient under any loss, so check at perturbed outputs too.
    noise = torch.randn(answers.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(answers)
    perturbed = answers + 0.01 * (float(answers.std()) if answers.numel() > 1 else 1.0) * noise
    alone = vmap(grad(single))(perturbed.reshape(flat.shape), targets)
    if alone.isfinite().all():  # else outside the domain of the loss
        _check_mean(loss_fn, perturbed, targets, alone)
    return slopes, curved


def _check_mean(loss_fn: LossFn, answers: Tensor, targets: Tensor, alone: Tensor) -> None:
    """Check the gradients of single inputs (n, k) against those of the whole loss."""
    with torch.enable_grad():
        leaf = answers.detach().requires_grad_()
        (together,) = torch.autograd.grad(loss_fn(leaf, targets), leaf)
    atol = 1e-3 * float(alone.abs().max())
    if not torch.allclose(together.reshape(alone.shape) * len(alone), alone, rtol=1e-3, atol=atol):
        raise NotSplittable("the loss is not a mean of per-input losses")
