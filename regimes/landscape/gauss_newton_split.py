"""The Hessian in two parts: Gauss-Newton, whose trace takes gradients alone, and the rest, often without a trace."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimes.errors import UserError
from regimes.landscape.error import evaluating, images_at_once, outputs
from regimes.landscape.hessian_operator import AnyMask, HessianOperator
from regimes.landscape.metric import LossFn

BYTES = {"cpu": 2**25, "cuda": 2**30}  # that the gradients of a group of inputs, one by one, may take
ROOTS = 2**30  # bytes that taking the curvatures of the loss in all outputs may need
COPIES = 5  # of them, on the way
WORK = 2**32  # inputs times outputs cubed: beyond it, their roots take longer than probing the whole Hessian
FEW = 4  # inputs on which the rest's diagonal is looked at
ROUNDING = 1e-4  # what a curvature may lie below zero, beside the largest


class NotSplittable(Exception):
    """This loss or this network cannot be taken apart input by input; the Hessian as a whole still can be probed."""


class GaussNewtonSplit:
    """``H = G + R`` for the Hessian of a mean loss over (inputs, targets), on the live coordinates, in eval mode.

    With ``J_n`` the Jacobian of the outputs for input n, ``A_n`` the Hessian and ``s_n`` the gradient of its loss in
    those outputs,

    ``G = mean_n J_n' A_n J_n``  (generalised Gauss-Newton; for cross-entropy the Fisher matrix)
    ``R = mean_n sum_k s_nk (Hessian of output k)``

    *tr G* takes gradients alone: ``tr J' A J = sum_c |J' a_c|^2`` over the columns of a root of A; one pass a column
    makes it exact, random sums of columns estimate it, independently for every input, so that errors average out over
    the inputs as well.

    *tr R* is zero wherever the network is piecewise linear in each parameter tensor taken alone, since the diagonal
    blocks of R vanish: layers with ReLU, pooling and BatchNorm in eval mode, each tensor used once. That is looked at
    on a few inputs rather than assumed (`flat`). Elsewhere R is small where the network fits its data.

    Raises:
        NoSplit: the loss is not the mean over inputs of a function of each, or not convex in the outputs; outputs mix
            inputs; an operation has no batched form; too many outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: tuple[Tensor, Tensor],
        mask: AnyMask = None,
        chunk: int = 0,
    ) -> None:
        self.model, self.inputs, self.chunk = model, data[0], chunk
        try:
            self._take_apart(loss_fn, data, mask)
        except (NotSplittable, UserError):
            raise
        except Exception as broken:  # what is not made for single inputs raises anything
            raise NotSplittable((str(broken).splitlines() or [type(broken).__name__])[0]) from None

    def _take_apart(self, loss_fn: LossFn, data: tuple[Tensor, Tensor], mask: AnyMask) -> None:
        answers = outputs(self.model, data[0])
        slopes, self.roots = _in_outputs(loss_fn, answers, data[1])
        self.slopes = slopes
        self.rest = HessianOperator(self.model, _linear, (data[0], slopes), mask, self.chunk)
        self.columns = self.roots.shape[2]
        alive = self.rest.live.split([leaf.numel() for leaf in self.rest.leaves.values()])
        named = zip(self.rest.leaves, alive, strict=True)
        self.live = {name: part.to(answers) for name, part in named if not part.all()}
        self._weights = {name: leaf.detach() for name, leaf in self.rest.leaves.items()}
        with evaluating(self.model), sdpa_kernel(SDPBackend.MATH):
            alone = vmap(lambda x: self._apply(self._weights, x))(data[0][:FEW])
        together = answers[:FEW].reshape(len(alone), -1)
        if not torch.allclose(alone, together, rtol=1e-3, atol=1e-3 * float(answers.abs().max())):
            raise NotSplittable("outputs depend on the other inputs of a batch")

    def _apply(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(self.model, (weights, self.rest.buffers), (x[None],))
        return out[0].flatten()

    def exact(self) -> Tensor:
        """``tr J_n' A_n J_n`` of every input, tensor by tensor (n, tensors)."""
        return self._squares(self.roots.transpose(1, 2))

    def slope_squares(self) -> Tensor:
        """``|J_n' s_n|^2``, the squared gradient of every input's own loss, tensor by tensor (n, tensors)."""
        return self._squares(self.slopes[:, None])

    def draw(self, generator: torch.Generator) -> Tensor:
        """An unbiased guess of it (n, tensors): for every input one random sum of the root's columns."""
        signs = torch.randint(0, 2, (len(self.inputs), self.columns, 1), generator=generator, dtype=torch.int8)
        return self._squares((self.roots @ (2 * signs - 1).to(self.roots)).transpose(1, 2))

    def flat(self) -> bool:
        """Whether R has no diagonal: each tensor's own block of it, times a random vector, on a few inputs.

        Where a network is linear in a tensor, that product is exactly zero, in float32 too; anything else counts as
        bent, however small. The inputs are the largest one, some drawn at random, and as many of pure noise.
        """
        random = torch.Generator().manual_seed(0)
        sizes = torch.cat([part.double().flatten(1).norm(dim=1) for part in self.inputs.split(1024)])
        chosen = {int(sizes.argmax()), *torch.randperm(len(sizes), generator=random)[: FEW - 1].tolist()}
        few = self.inputs[torch.tensor(sorted(chosen), device=self.inputs.device)]
        noise = torch.randn(few.shape, generator=random, dtype=torch.float64).to(few)
        few = torch.cat([few, few.mean() + 2 * few.std() * noise])  # units that these inputs leave in one place
        slopes = torch.randn(len(few), self.roots.shape[1], generator=random, dtype=torch.float64).to(self.roots)
        rest = HessianOperator(self.model, _linear, (few, slopes))
        vectors = rest.tensors(rest.normal(random))
        return not any(bool(rest.within(name, vector).any()) for name, vector in vectors.items())

    def _squares(self, vectors: Tensor) -> Tensor:
        """``sum_c |J_n' v_nc|^2`` on the live coordinates of each tensor (n, tensors), for vectors (n, c, outputs)."""

        def one(x: Tensor, columns: Tensor) -> Tensor:
            back: Callable[[Tensor], tuple[dict[str, Tensor]]] = vjp(lambda w: self._apply(w, x), self._weights)[1]
            total = torch.zeros(len(self._weights), device=x.device, dtype=columns.dtype)
            for column in columns:  # one after the other: the forward pass is shared, memory is not asked for
                rows = {name: gradient.flatten() for name, gradient in back(column)[0].items()}
                alive = ((row * self.live[name] if name in self.live else row) @ row for name, row in rows.items())
                total = total + torch.stack(list(alive))
            return total

        numbers = self.rest.live.numel()
        group = max(1, BYTES.get(self.inputs.device.type, 2**25) // (numbers * self.roots.element_size()))
        group = min(group, self.chunk or group, images_at_once(self.inputs))
        with evaluating(self.model), sdpa_kernel(SDPBackend.MATH):  # fused attention has no batched form
            parts = zip(self.inputs.split(group), vectors.split(group), strict=True)
            try:
                return torch.cat([vmap(one)(*part) for part in parts]).double().cpu()
            except (RuntimeError, NotImplementedError) as broken:  # an operation whose derivative has no batched form
                raise NotSplittable((str(broken).splitlines() or [""])[0]) from None


def _linear(answers: Tensor, slopes: Tensor) -> Tensor:
    """The loss with its slopes held: its Hessian in the weights is R."""
    return (answers.reshape(slopes.shape) * slopes).sum(dim=1).mean()


def _in_outputs(loss_fn: LossFn, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (n, k) of the loss of each input in its k outputs, and roots (n, k, c) of its Hessian there."""
    count, width = len(answers), answers[0].numel()
    if count * width**2 * 8 * COPIES > ROOTS or count * width**3 > WORK:
        raise NotSplittable("too many outputs")
    if not answers.isfinite().all():
        raise NotSplittable("outputs are not finite")
    below = 0.0
    try:  # in float64, as the curvature of a loss that is nearly zero is lost in rounding
        fine = targets.double() if targets.is_floating_point() else targets
        slopes, curved = _derivatives(loss_fn, answers.double(), fine)
    except RuntimeError:  # a loss that holds tensors of its own
        slopes, curved = _derivatives(loss_fn, answers, targets)
        below = 10 * torch.finfo(answers.dtype).eps
    values, vectors = torch.linalg.eigh(curved.double())
    largest = float(values.max())
    if not float(values.min()) >= -ROUNDING * largest - below:
        raise NotSplittable("the loss is not convex in the outputs")
    idle = int((values <= 1e-9 * largest).all(dim=0).sum())  # eigenvalues ascend: the first ones
    roots = vectors[:, :, idle:] * values[:, None, idle:].clamp(min=0).sqrt()
    return slopes.to(answers), roots.to(answers)


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
    # Where an answer is right its slope is zero, whatever the loss: so beside it too.
    noise = torch.randn(answers.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(answers)
    beside = answers + 0.01 * (float(answers.std()) if answers.numel() > 1 else 1.0) * noise
    alone = vmap(grad(single))(beside.reshape(flat.shape), targets)
    if alone.isfinite().all():  # else outside of where the loss is defined
        _check_mean(loss_fn, beside, targets, alone)
    return slopes, curved


def _check_mean(loss_fn: LossFn, answers: Tensor, targets: Tensor, alone: Tensor) -> None:
    """Hold the slopes of single inputs (n, k) against those of the whole loss."""
    with torch.enable_grad():
        leaf = answers.detach().requires_grad_()
        (together,) = torch.autograd.grad(loss_fn(leaf, targets), leaf)
    atol = 1e-3 * float(alone.abs().max())
    if not torch.allclose(together.reshape(alone.shape) * len(alone), alone, rtol=1e-3, atol=atol):
        raise NotSplittable("the loss is not the mean over inputs of a function of each")
