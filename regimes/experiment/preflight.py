"""Checks of a recipe, and trials of new models, losses, pruner and discovery, before any work."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regimes.config.recipe import Recipe
from regimes.config.sweep import Sweep
from regimes.data import AUGMENTATIONS
from regimes.data.dataset import Dataset, Split
from regimes.data.inputs import Inputs, call
from regimes.device_faults import reraise_device_fault
from regimes.discovery import ESTIMATORS
from regimes.discovery.trace_graph import trace_graph
from regimes.errors import UserError
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.memory import synchronize
from regimes.experiment.numerics import Numerics
from regimes.losses.functions import IGNORED, loss_value
from regimes.models.build import seeded
from regimes.models.eval_mode import eval_mode
from regimes.pruners.channels import shrink
from regimes.pruners.prune import check_kept, prunable, prune
from regimes.registry import lookup
from regimes.training.precision import ProductDtypes, precision_context
from regimes.training.schedule import TrainingSchedule

RUNS_MODEL = ("snip", "synflow")  # pruners that may fail on a model
TRIED_INPUTS = 8
NOISE = 0.1  # standard deviation of what is added to the weights of a trial
NUDGE = 1e-3  # added to the weights for a trial: a layer that starts at zero stops every flow


def check_recipe(recipe: Recipe, context: RunContext, table: str = "recipe") -> None:
    """Check before any work that a recipe fits the data and the model.

    Args:
        recipe: the recipe.
        context: data and model.
        table: the recipe's table in the file, for messages.

    Raises:
        UserError: it does not; see `check_fits`, `try_loss` and `try_new_model`.
    """
    check_fits(recipe, context.loaded)
    try_loss(recipe, context, table)
    try_new_model(recipe, context)


def check_fits(recipe: Recipe, data: Dataset) -> None:
    """Refuse a batch larger than the data, or a loss or augmentation for another kind of data."""
    TrainingSchedule(recipe, len(data.train.targets))
    if data.regression and recipe.loss == "cross-entropy":
        raise UserError(
            f"recipe.loss = 'cross-entropy' is for classes, '{data.title}' has numbers as targets; try 'mse'"
        )
    if not data.regression and recipe.loss == "mse":
        raise UserError(f"recipe.loss = 'mse' is for numbers, '{data.title}' has classes as targets")
    lookup(AUGMENTATIONS, recipe.augment, "augmentation").check(data.input_shape, recipe.augment)


def try_loss(recipe: Recipe, context: RunContext, table: str = "recipe", trained: bool = True) -> None:
    """Call a recipe's loss, and its gradient, on two inputs, those with the smallest and the largest class.

    The gradient is left out with a custom training loop (``recipe.train``), and with ``trained`` false: the recipe of
    given checkpoints, whose loss is only evaluated.

    Raises:
        UserError: the loss or its gradient raises, e.g. for want of a deterministic kernel on a GPU, or the loss does
            not return one number that depends on the outputs.
    """
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mismatching shapes warn first, then raise
        model, few, answers = context.new_model(seed=0), _extreme_two(context.data.train), None
        where = f"{table}.loss = '{recipe.loss}'"
        try:
            answers = call(model, few.inputs)
            value = loss_value(recipe.training_loss, answers, few.targets)
            synchronize(context.device)  # on a GPU a class out of range is an asynchronous error
        except Exception as error:  # a user's function may raise anything
            reraise_device_fault(error)
            reason = (str(error).splitlines() or [""])[0]
            advice = ""
            if isinstance(answers, Tensor) and answers.numel() == 2 == few.targets.numel():
                advice = f" (the model returns one logit; {table}.loss = 'binary-cross-entropy' takes it)"
            raise UserError(f"{where} raised {type(error).__name__}: {_shorter(reason)}{advice}") from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{where} returned {got}; expected the mean loss of the batch, one number of torch")
        if recipe.train or not trained:
            return
        try:
            value.backward()
            synchronize(context.device)
        except Exception as error:  # a user's network may do anything
            reraise_device_fault(error)
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"the gradient of {where} raised {type(error).__name__}: {_shorter(reason)}") from error
        if all(each.grad is None for each in model.parameters()):
            raise UserError(f"the gradient of {where} reaches no parameter: the outputs do not depend on them")


def try_new_model(recipe: Recipe, context: RunContext) -> None:
    """Check initial weights and outputs of new models.

    Warns of initial weights that are the same for every seed, of probabilities as outputs where logits are expected,
    and of outputs that do not depend on the inputs.

    Raises:
        UserError: initial weights differ with one seed, or belong to several models; outputs are NaN or infinite.
    """
    where = f"[model] name = '{context.spec.model.name}'"
    inputs = context.data.train.inputs[:TRIED_INPUTS]
    with one_thread(), seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = context.new_model(seed=0)
        _check_initial_weights(where, model, context.new_model(seed=0))
        fixed = _different_weight(model, context.new_model(seed=1)) is None
        outputs = _outputs(model, inputs)
        if bool((outputs.isnan() | outputs.isposinf()).any()):
            raise UserError(f"{where}: outputs of a new model are NaN or infinite; check its initial weights")
        with torch.no_grad():  # a layer that starts at zero hides the inputs
            for each in model.parameters():
                each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(0)).to(each), alpha=NOISE)
        noisy = _outputs(model, inputs)
    if fixed:
        warnings.warn(f"{where}: initial weights are the same for every seed; dense seeds differ less", stacklevel=2)
    if recipe.loss == "cross-entropy" and _are_probabilities(outputs):
        warnings.warn(f"{where} returns probabilities; cross-entropy expects logits: remove the softmax", stacklevel=2)
    differ = isinstance(inputs, Tensor) and not bool((inputs == inputs[:1]).all())
    if differ and torch.allclose(noisy, noisy[:1].expand_as(noisy), rtol=1e-6, atol=0):
        warnings.warn(f"{where}: outputs do not depend on the inputs", stacklevel=2)


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    """All tensors that a model returns in eval mode, (n, numbers)."""
    with eval_mode(model), torch.no_grad():
        found = [each for each in tree_leaves(call(model, inputs)) if isinstance(each, Tensor) and each.dim()]
    rows = [each.reshape(len(inputs), -1) for each in found if len(each) == len(inputs)]
    return torch.cat(rows, dim=1) if rows else torch.zeros(len(inputs), 0)


def _check_initial_weights(where: str, model: nn.Module, again: nn.Module) -> None:
    """Refuse two models of one seed whose weights differ, or are the same tensors."""
    places = {each.data_ptr() for each in model.parameters() if each.requires_grad and each.numel()}
    if any(each.data_ptr() in places for each in again.parameters()):
        raise UserError(f"{where} returns the same weights in every call; it must return a new model")
    differs = _different_weight(model, again)
    if differs is not None:
        raise UserError(
            f"{where}: '{differs}' starts with other weights each time; draw them from the global generators of torch, "
            "NumPy or Python, which are seeded"
        )


def _different_weight(one: nn.Module, other: nn.Module) -> str | None:
    """The name of a tensor of the state dict that differs between two models; None if none does."""
    theirs = other.state_dict()
    pairs = ((name, each.nan_to_num(), theirs[name].nan_to_num()) for name, each in one.state_dict().items())
    return next((name for name, first, second in pairs if not torch.equal(first, second)), None)


def _are_probabilities(outputs: Tensor) -> bool:
    sums = outputs.sum(dim=1)
    return (
        outputs.shape[1] > 1 and bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    )


def _shorter(reason: str) -> str:
    """Torch's message about an operation without deterministic kernel, in words of a sweep; others as they are."""
    name, found, _ = reason.partition(" does not have a deterministic implementation")
    if not found:
        return reason
    return f"torch has no deterministic kernel for {name} on a GPU; use another operation, or --device cpu"


def check_precision(sweep: Sweep, context: RunContext, numerics: Numerics) -> None:
    """Check that training steps would be in the precision of the numerics, with a trial of a new model.

    Warns of matrix products and convolutions that stay in another precision, e.g. those of complex weights.

    Raises:
        UserError: the steps are those of the engine "stacked", or of a custom training loop, and not in float32; or the
            model raises in that precision.
    """
    if numerics.precision == "float32":
        return
    asked = f"--precision {numerics.precision}"
    if "stacked" in (numerics.dense, numerics.engine):
        raise UserError(
            f"{asked}: the engine stacked trains in float32 only; use --engine eager, or --precision float32"
        )
    for table, recipe in (("recipe", sweep.recipe), ("retrain", sweep.retrain)):
        if recipe.train and not (table == "recipe" and sweep.dense):  # given checkpoints are not trained
            raise UserError(
                f"{asked}: {table}.train = '{recipe.train}' chooses its own precision; use torch.autocast in it, and "
                "--precision float32"
            )
    for size in sweep.sizes():
        _try_precision(context.sized(size), numerics.precision, asked)


def _try_precision(context: RunContext, precision: str, asked: str) -> None:
    """Run a new model in a precision; warn of products in another one."""
    model, few = context.new_model(seed=0), context.data.train.inputs[:2]
    try:
        with one_thread(), ProductDtypes() as products, precision_context(precision, context.device):
            call(model, few)
            synchronize(context.device)
    except Exception as error:  # a user's model may raise anything
        reraise_device_fault(error)
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{asked}: the model raised {type(error).__name__}: {reason}") from error
    others = [name for name, dtype in products.found if dtype != getattr(torch, precision)]
    if others:
        warnings.warn(
            f"{asked}: {len(others)} of {len(products.found)} matrix products and convolutions of the model stay in "
            f"another precision ({', '.join(sorted(set(others)))})",
            stacklevel=3,
        )


def _extreme_two(split: Split) -> Split:
    """Two inputs, of classes those with the smallest and the largest one."""
    if split.targets.is_floating_point():
        return Split(*(each[:2] for each in split))
    rows = split.targets.reshape(len(split.targets), -1)
    largest = int(rows.amax(dim=1).argmax())
    least = rows.masked_fill(rows == IGNORED, int(rows.max())).amin(dim=1)
    least[largest] = int(rows.max()) + 1  # another input, even if this one has the smallest class too
    chosen = torch.tensor([int(least.argmin()), largest], device=rows.device)
    return Split(split.inputs[chosen], split.targets[chosen])


def try_pruner(sweep: Sweep, context: RunContext) -> None:
    """Check that a new model can be pruned to the lowest density, with a trial of a pruner that runs the model.

    Raises:
        UserError: no weight is prunable, or one that cannot be masked; the pruner or the allocation raises, or returns
            scores or counts that do not fit.
    """
    load, model = sweep.load, context.new_model(seed=0)
    check_kept(model, prunable(model, load.embeddings), min(load.density))
    own = ":" in load.pruner + load.allocation
    if not own and load.pruner not in RUNS_MODEL:
        return
    data, density = (context.data, min(load.density)) if own else (_first_two(context.data), 1.0)
    if not own:
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), NUDGE)
    where = f"[load] pruner = '{load.pruner}', allocation = '{load.allocation}'"
    with one_thread():
        generator, loss_fn = torch.Generator().manual_seed(0), sweep.recipe.loss_fn
        try:
            prune(model, density, load.pruner, load.allocation, data, generator, loss_fn, embeddings=load.embeddings)
        except UserError as error:
            reraise_device_fault(error)
            raise UserError(f"{where}: {error}") from error
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            reraise_device_fault(error)
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"{where} raised {type(error).__name__}: {reason}") from error


def _first_two(data: Dataset) -> Dataset:
    few = Split(*(each[:2] for each in data.train))
    return Dataset(few, few, few, data.classes, data.title)


def try_channels(sweep: Sweep, context: RunContext) -> None:
    """Remove channels from a new model down to each density.

    Raises:
        UserError: torch-pruning is missing or cannot trace the model, or a density cannot be reached.
    """
    with one_thread(), torch.no_grad():
        model = context.new_model(seed=0)
        for density in sweep.load.density:
            shrink(model, density, context.data.train.inputs[:2], sweep.load.pruner, sweep.load.allocation, seed=0)


def try_discovery(sweep: Sweep, context: RunContext) -> None:
    """Find the removable units and blocks of a new model.

    Raises:
        UserError: torch-pruning is missing or cannot trace the model, nothing in it can be removed, or the estimator is
            unknown.
    """
    lookup(ESTIMATORS, sweep.load.discover.estimator, "estimator")
    with one_thread():
        trace_graph(context.new_model(seed=0), context.data.train.inputs[:2])
