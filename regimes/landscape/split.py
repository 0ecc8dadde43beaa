"""The Hessian in two parts: Gauss-Newton, whose trace takes gradients alone, and the rest, often without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap

from regimes.landscape.error import evaluating, outputs
from regimes.landscape.estimate import Estimate
from regimes.landscape.metric import LossFn
from regimes.landscape.operator import HessianOperator
from regimes.landscape.xtrace import columns_that_fit, xtrace
from regimes.pruners.mask import Mask

BYTES = {"cpu": 2**25, "cuda": 2**30}  # that the gradients of a group of inputs, one by one, may take
ROOTS = 2**30  # bytes that the curvatures of the loss in all outputs may take
FEW = 4  # inputs on which the rest's diagonal is looked at
ROUNDING = 1e-4  # what is left of a zero in float32
VALUES = 32  # draws of single inputs that a standard error needs
SHARE = 0.7  # of the error that either part may have
MANY = 48  # probes of the rest: XTrace takes fewer products then
PROBES = 6  # of the rest, that a standard error needs


class NoSplit(Exception):
    """This loss or this network cannot be taken apart input by input; the Hessian as a whole still can be probed."""


class Split:
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
        mask: Mask | Mapping[str, Tensor] | None = None,
        chunk: int = 0,
    ) -> None:
        self.model, self.inputs, self.chunk = model, data[0], chunk
        answers = outputs(model, data[0])
        slopes, self.roots = _in_outputs(loss_fn, answers, data[1])
        self.rest = HessianOperator(model, _linear, (data[0], slopes), mask, chunk)
        self.columns = self.roots.shape[2]
        alive = self.rest.live.split([leaf.numel() for leaf in self.rest.leaves.values()])
        named = zip(self.rest.leaves, alive, strict=True)
        self.live = {name: part.to(answers) for name, part in named if not part.all()}
        weights = {name: leaf.detach() for name, leaf in self.rest.leaves.items()}
        self._apply = lambda weights, x: functional_call(model, (weights, self.rest.buffers), (x[None],))[0].flatten()
        self._weights = weights
        with evaluating(model):
            try:
                alone = vmap(lambda x: self._apply(weights, x))(data[0][:FEW])
            except RuntimeError as broken:
                raise NoSplit(str(broken)) from None
        if not torch.allclose(
            alone, answers[:FEW].reshape(len(alone), -1), rtol=1e-3, atol=1e-3 * float(answers.abs().max())
        ):
            raise NoSplit("outputs depend on the other inputs of a batch")

    def exact(self) -> Tensor:
        """``tr J_n' A_n J_n`` of every input (n,)."""
        return self._squares(self.roots.transpose(1, 2))

    def draw(self, generator: torch.Generator) -> Tensor:
        """An unbiased guess of it for every input (n,): one random sum of the root's columns each."""
        signs = torch.randint(0, 2, (len(self.inputs), self.columns, 1), generator=generator, dtype=torch.int8)
        return self._squares((self.roots @ (2 * signs - 1).to(self.roots)).transpose(1, 2))

    def flat(self) -> bool:
        """Whether R has no diagonal: each tensor's own block of it, times a random vector, on a few inputs."""
        few = self.inputs[:FEW]
        random = torch.Generator().manual_seed(0)
        slopes = torch.randn(len(few), self.roots.shape[1], generator=random, dtype=torch.float64).to(self.roots)
        rest = HessianOperator(self.model, _linear, (few, slopes))
        vectors = rest.tensors(rest.normal(random))
        images = rest.tensors(rest @ rest.normal(random))  # what a block's product would be beside
        return all(
            float(rest.within(name, vectors[name]).norm()) <= ROUNDING * float(images[name].norm()) for name in vectors
        )

    def _squares(self, vectors: Tensor) -> Tensor:
        """``sum_c |J_n' v_nc|^2`` on the live coordinates (n,), for vectors (n, c, outputs)."""

        def one(x: Tensor, columns: Tensor) -> Tensor:
            back: Callable[[Tensor], tuple[dict[str, Tensor]]] = vjp(lambda w: self._apply(w, x), self._weights)[1]
            total = torch.zeros((), device=x.device, dtype=columns.dtype)
            for column in columns:  # one after the other: the forward pass is shared, memory is not asked for
                for name, gradient in back(column)[0].items():
                    row = gradient.flatten()
                    total = total + (row * self.live[name] if name in self.live else row) @ row
            return total

        numbers = self.rest.live.numel()
        group = max(1, BYTES.get(self.inputs.device.type, 2**25) // (numbers * self.roots.element_size()))
        group = min(group, self.chunk or group)
        with evaluating(self.model):
            parts = zip(self.inputs.split(group), vectors.split(group), strict=True)
            return torch.cat([vmap(one)(*part) for part in parts]).double().cpu()


def _linear(answers: Tensor, slopes: Tensor) -> Tensor:
    """The loss with its slopes held: its Hessian in the weights is R."""
    return (answers.reshape(slopes.shape) * slopes).sum(dim=1).mean()


def _in_outputs(loss_fn: LossFn, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (n, k) of the loss of each input in its k outputs, and roots (n, k, c) of its Hessian there."""
    count, width = len(answers), answers[0].numel()
    if count * width**2 * 8 > ROOTS:
        raise NoSplit("too many outputs")
    if not answers.isfinite().all():
        raise NoSplit("outputs are not finite")
    try:  # in float64, as the curvature of a loss that is nearly zero is lost in rounding
        fine = targets.double() if targets.is_floating_point() else targets
        slopes, curved = _derivatives(loss_fn, answers.double(), fine)
    except RuntimeError:  # a loss that holds tensors of its own
        try:
            slopes, curved = _derivatives(loss_fn, answers, targets)
        except RuntimeError as broken:
            raise NoSplit(str(broken)) from None
    values, vectors = torch.linalg.eigh(curved.double())
    largest = float(values.max())
    if not float(values.min()) >= -ROUNDING * largest:
        raise NoSplit("the loss is not convex in the outputs")
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
        raise NoSplit("the loss is not finite")
    with torch.enable_grad():
        leaf = answers.detach().requires_grad_()
        (together,) = torch.autograd.grad(loss_fn(leaf, targets), leaf)
    atol = 1e-3 * float(slopes.abs().max())
    if not torch.allclose(together.reshape(slopes.shape) * count, slopes, rtol=1e-3, atol=atol):
        raise NoSplit("the loss is not the mean over inputs of a function of each")
    return slopes, curved


def split_trace(split: Split, generator: torch.Generator, rel_stderr: float, most: int) -> Estimate:
    """tr G + tr R until ``stderr <= rel_stderr * abs(value)``, or ``most`` draws and products are made.

    Where R's diagonal is zero that is Gauss-Newton alone. Elsewhere R is probed too: by Hutchinson, whose standard
    error is widened by Student's factor as the probes are few; by XTrace where it would take many. Whichever part is
    less certain is worked on next.
    """
    gauss, flat = _Gauss(split, generator), split.flat()
    probes: list[float] = []
    while True:
        while not flat and len(probes) < PROBES:
            probes.append(_probe(split.rest, generator))
        first, second = gauss.estimate(), Estimate(0.0, 0.0, 0) if flat else _few(probes)
        found = _sum(first, second)
        goal = rel_stderr * abs(found.value)
        if not found.stderr > goal or found.samples >= most:  # NaN ends here too
            return found
        share = goal if flat else SHARE * goal
        if first.stderr > second.stderr:
            gauss.reach(share)
        elif len(probes) * second.stderr**2 > MANY * share**2 and columns_that_fit(split.rest.size) >= MANY:
            rest = xtrace(split.rest, generator, SHARE * rel_stderr, most, beside=first.value)
            gauss.reach(SHARE * rel_stderr * abs(first.value + rest.value))
            return _sum(gauss.estimate(), rest)
        else:
            probes.append(_probe(split.rest, generator))


class _Gauss:
    """tr G as known so far: from random draws, until the exact trace costs less than the draws still needed."""

    def __init__(self, split: Split, generator: torch.Generator) -> None:
        self.split, self.generator = split, generator
        self.whole: Tensor | None = None
        self.draws: list[Tensor] = []
        first = -(-VALUES // len(split.inputs))
        if first >= split.columns:
            self.whole = split.exact()
        else:
            self.draws = [split.draw(generator) for _ in range(first)]

    def estimate(self) -> Estimate:
        """Only draws vary, the inputs are given; of one draw alone the spread over inputs is an upper bound."""
        if self.whole is not None:
            return Estimate(float(self.whole.mean()), 0.0, len(self.draws) + self.split.columns, "nat")
        draws = torch.stack(self.draws)  # (k, n)
        count, inputs = draws.shape
        variance = draws.var(dim=0).mean() if count > 1 else draws[0].var()
        return Estimate(float(draws.mean()), float(variance / (inputs * count)) ** 0.5, count, "nat")

    def reach(self, goal: float) -> None:
        """Draw until the standard error is ``goal``, or take the exact trace."""
        while self.whole is None and (now := self.estimate().stderr) > goal:
            needed = len(self.draws) * (now / goal) ** 2 if goal > 0 else math.inf
            if needed - len(self.draws) >= self.split.columns:
                self.whole = self.split.exact()
            else:
                self.draws.append(self.split.draw(self.generator))


def _sum(one: Estimate, other: Estimate) -> Estimate:
    stderr = math.hypot(one.stderr, other.stderr)
    return Estimate(one.value + other.value, stderr, one.samples + other.samples, "nat")


def _probe(rest: HessianOperator, generator: torch.Generator) -> float:
    vector = rest.rademacher(generator)
    return float(vector @ (rest @ vector))


def _few(probes: list[float]) -> Estimate:
    """Their mean, with a standard error of which 1.96 make a 95 % interval as Student's distribution has it."""
    mean = Estimate.mean(probes, "nat")
    freedom = len(probes) - 1
    return Estimate(mean.value, mean.stderr * (1 + 1.24 / freedom + 1.3 / freedom**2), mean.samples, "nat")
