"""Hessian-vector products of a mean loss; the Hessian itself is never formed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimes.data.inputs import Inputs, arguments, call
from regimes.errors import UserError
from regimes.landscape.convolution_derivatives import FastConvolutionDerivatives
from regimes.landscape.metric import LossFn
from regimes.losses.chunks import chunk_weights
from regimes.losses.functions import loss_value
from regimes.models.eval_mode import eval_gradients, eval_mode
from regimes.pruners.mask import Mask

AnyMask = Mask | Mapping[str, Tensor] | None


class HessianOperator:
    """Linear operator ``v -> H v`` for the Hessian H of the mean loss over (inputs, targets), on the live coordinates.

    H is taken in eval mode (BatchNorm with its running statistics, no dropout) with respect to every parameter that
    requires a gradient, including the head, biases and BatchNorm. Coordinates pruned by the mask are left out;
    otherwise a trace would count directions in which the network cannot move. The model's gradients, mode and buffers
    are not changed.

    With one chunk, the graph of the gradient is stored and each product costs about 1-2 gradients. With several, the
    graph is rebuilt for every product, and memory stays that of one chunk.

    Args:
        model: any network.
        loss_fn: (outputs, targets) -> mean loss.
        data: inputs (n, ...), targets (n, ...).
        mask: a `Mask` or {parameter name: boolean tensor}; None: every coordinate is live.
        chunk: inputs per forward pass; 0: all at once.
        vectors_per_pass: number of vectors per batched pass in `matmat`; None: 1 on a CPU, 8 elsewhere.

    Raises:
        UserError: no inputs or a different number of targets, a mask that does not fit, no live coordinate, weights
            that are neither float32 nor float64, several chunks with a loss that is neither a sum nor a mean over
            inputs, or an operation that torch cannot differentiate twice.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: tuple[Inputs, Tensor],
        mask: AnyMask = None,
        chunk: int = 0,
        vectors_per_pass: int | None = None,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        inputs, targets = data
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise UserError(
                f"the Hessian needs equally many inputs and targets, at least one: got {len(inputs)} and {len(targets)}"
            )
        size = chunk or len(inputs)
        self.chunks = list(zip(inputs.split(size), targets.split(size), strict=True))
        self.shares = [1.0]
        if len(self.chunks) > 1:
            self.shares = self._shares()
        named = {name: each for name, each in model.named_parameters() if each.requires_grad}
        if not named:
            raise UserError("every parameter of the model is frozen (requires_grad=False): the Hessian is empty")
        self.leaves = {name: each.detach().clone().requires_grad_() for name, each in named.items()}
        self.buffers = {name: each.detach().clone() for name, each in model.named_buffers()}
        self.live = _live(self.leaves, layers_of(mask, dict(model.named_parameters())))
        self.size = int(self.live.sum())
        if self.size == 0:
            raise UserError("the model has no live parameter: the Hessian has no coordinates")
        example = next(iter(self.leaves.values()))
        self.device, self.dtype = example.device, example.dtype
        if self.dtype not in (torch.float32, torch.float64):
            raise UserError(f"the Hessian needs weights in float32 or float64, got {self.dtype}; call model.float()")
        self.vectors_per_pass = vectors_per_pass or (1 if self.device.type == "cpu" else 8)
        self._kept: tuple[Tensor, ...] | None = None

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return ``H v`` (size,) for a vector over the live coordinates (size,)."""
        return self._batch(vector[None])[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return ``H V`` (size, k) for k vectors (size, k)."""
        if not vectors.shape[1]:
            return vectors
        try:
            return torch.cat([self._batch(part) for part in vectors.T.split(self.vectors_per_pass)]).T
        except RuntimeError:  # an operation that has no batched form
            if self.vectors_per_pass == 1:
                raise
            self.vectors_per_pass = 1
            return self.matmat(vectors)

    def _batch(self, rows: Tensor) -> Tensor:
        """``H v`` for each row (k, size), in one batched pass; each chunk's graph is built once for all rows."""
        whole = torch.zeros(len(rows), self.live.numel(), device=self.device, dtype=self.dtype)
        whole[:, self.live] = rows.to(whole)
        parts = [
            each.view(len(rows), *leaf.shape) for each, leaf in zip(self._cut(whole), self.leaves.values(), strict=True)
        ]
        total = torch.zeros_like(whole)
        for share, gradient in self._gradients():
            with twice_differentiable():
                total += self._product(gradient, parts) * share
            del gradient  # free its graph before the next chunk's is built
        return total[:, self.live]

    def _shares(self) -> list[float]:
        """Weight of each chunk's loss in the whole loss."""
        with eval_mode(self.model):
            outputs = [call(self.model, inputs) for inputs, _ in self.chunks]
        targets = [each for _, each in self.chunks]
        try:
            return chunk_weights(self.loss_fn, outputs, targets)
        except UserError as error:
            raise UserError(f"chunk = {len(targets[0])}: {error}; set chunk = 0") from None

    def block_product(self, name: str, vector: Tensor) -> Tensor:
        """Multiply one parameter's diagonal block of H, pruned coordinates included, by a vector of its shape."""
        leaf, place = self.leaves[name], list(self.leaves).index(name)
        total = torch.zeros_like(leaf)
        for share, gradient in self._gradients():
            if gradient[place].requires_grad:
                (part,) = torch.autograd.grad(gradient[place], leaf, vector, retain_graph=True, allow_unused=True)
                total = total if part is None else total + part * share
            del gradient
        return total

    def as_tensors(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector over the live coordinates (size,) in the parameters' shapes, zero where pruned."""
        whole = torch.zeros(self.live.numel(), device=self.device, dtype=self.dtype)
        whole[self.live] = vector.to(whole)
        return {n: part.view_as(leaf) for (n, leaf), part in zip(self.leaves.items(), self._cut(whole), strict=True)}

    def weights(self) -> Tensor:
        """Return the values of the live coordinates (size,)."""
        return torch.cat([leaf.detach().reshape(-1) for leaf in self.leaves.values()])[self.live]

    def loss_and_gradient(self, step: Tensor | None = None) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient (size,), at the weights or at a step (size,) from them."""
        leaves = self.leaves
        if step is not None:
            moved = self.as_tensors(step)
            leaves = {name: (leaf.detach() + moved[name]).requires_grad_() for name, leaf in leaves.items()}
        total, whole = 0.0, torch.zeros(self.live.numel(), device=self.device, dtype=self.dtype)
        for (inputs, targets), share in self._weighted():
            with dense_gradients(self.model):
                loss = self._loss(leaves, inputs, targets)
                parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            total += float(loss.detach()) * share
            whole += torch.cat([each.reshape(-1) for each in parts]) * share
        return total, whole[self.live]

    def rademacher(self, generator: torch.Generator) -> Tensor:
        """Return a vector of random signs (size,), drawn on the CPU and so the same on every device."""
        signs = torch.randint(0, 2, (self.size,), generator=generator, dtype=torch.int8)
        return (2 * signs - 1).to(self.device, self.dtype)

    def normal(self, generator: torch.Generator) -> Tensor:
        """Return a standard Gaussian vector (size,), drawn on the CPU."""
        return torch.randn(self.size, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def _cut(self, whole: Tensor) -> tuple[Tensor, ...]:
        return whole.split([leaf.numel() for leaf in self.leaves.values()], dim=-1)

    def _gradients(self) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
        """Yield each chunk's share of the inputs and its gradient with its graph; stored if there is only one chunk."""
        if self._kept is None and len(self.chunks) == 1:
            self._kept = self._gradient(*self.chunks[0])
        for (inputs, targets), share in self._weighted():
            yield share, self._kept or self._gradient(inputs, targets)

    def _weighted(self) -> Iterator[tuple[tuple[Inputs, Tensor], float]]:
        """Chunks with their weights, without those that have no target."""
        return ((chunk, share) for chunk, share in zip(self.chunks, self.shares, strict=True) if share)

    def _loss(self, leaves: Mapping[str, Tensor], inputs: Inputs, targets: Tensor) -> Tensor:
        outputs = functional_call(self.model, (dict(leaves), self.buffers), *arguments(inputs))
        return loss_value(self.loss_fn, outputs, targets)

    def _gradient(self, inputs: Inputs, targets: Tensor) -> tuple[Tensor, ...]:
        with dense_gradients(self.model), twice_differentiable(), FastConvolutionDerivatives():
            loss = self._loss(self.leaves, inputs, targets)
            leaves = list(self.leaves.values())
            return torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)

    def _product(self, gradient: tuple[Tensor, ...], parts: list[Tensor]) -> Tensor:
        curved = [(each, part) for each, part in zip(gradient, parts, strict=True) if each.requires_grad]
        leaves = list(self.leaves.values())
        if not curved:  # a loss that is linear in every parameter
            return torch.zeros(len(parts[0]), self.live.numel(), device=self.device, dtype=self.dtype)
        outputs, vectors = zip(*curved, strict=True)
        batched = len(parts[0]) > 1
        products = torch.autograd.grad(
            outputs,
            leaves,
            vectors if batched else tuple(each[0] for each in vectors),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=not batched,
            is_grads_batched=batched,
        )
        shape = (len(parts[0]), -1)
        return torch.cat(
            [
                torch.zeros_like(part).reshape(shape) if each is None else each.reshape(shape)
                for each, part in zip(products, parts, strict=True)
            ],
            dim=1,
        )


@contextmanager
def dense_gradients(model: nn.Module) -> Iterator[None]:
    """Context manager with a model in eval mode, gradients on, and kernels that can be differentiated twice: no fused
    attention or encoder layers, no cuDNN recurrent layers, no sparse gradients of embeddings."""
    fast = torch.backends.mha.get_fastpath_enabled()
    sparse = [each for each in model.modules() if getattr(each, "sparse", False) is True]
    with eval_gradients(model), sdpa_kernel(SDPBackend.MATH):
        for each in sparse:
            each.sparse = False  # type: ignore[assignment]
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for each in sparse:
                each.sparse = True  # type: ignore[assignment]


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Turn torch's error about a missing second derivative into a `UserError`."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # of vmap, nothing to act on
            yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if "derivative" not in text and "differentiable" not in text:
            raise
        reason = text.splitlines()[0]
        raise UserError(f"the Hessian needs second derivatives, which torch does not have here: {reason}") from error


def layers_of(mask: AnyMask, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the layers of a mask, checked against a model's parameters.

    Raises:
        UserError: a layer that the model does not have, or of another shape.
    """
    layers = mask.layers if isinstance(mask, Mask) else dict(mask or {})
    unknown = [name for name in layers if name not in parameters]
    if unknown:
        raise UserError(
            f"the mask names unknown parameters {', '.join(unknown)}; the model has {', '.join(parameters)}"
        )
    for name, layer in layers.items():
        if layer.shape != parameters[name].shape:
            shapes = f"{tuple(layer.shape)}, the parameter {tuple(parameters[name].shape)}"
            raise UserError(f"mask of {name} has shape {shapes}")
    return {name: layer.bool() for name, layer in layers.items()}


def _live(leaves: dict[str, Tensor], layers: Mapping[str, Tensor]) -> Tensor:
    parts = [layers.get(name, torch.ones(leaf.shape, dtype=torch.bool)).to("cpu") for name, leaf in leaves.items()]
    device = next(iter(leaves.values())).device
    return torch.cat([part.reshape(-1) for part in parts]).to(device)
