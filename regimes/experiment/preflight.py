"""Try what a sweep names on a fresh model before any work, so that what cannot go says so at once."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from regimes.config.sweep import Sweep
from regimes.discovery import ESTIMATORS
from regimes.discovery.trace_graph import anatomy_of
from regimes.errors import UserError
from regimes.experiment.context import RunContext, one_thread
from regimes.pruners.channels import shrink
from regimes.pruners.prune import prune
from regimes.registry import load


def try_losses(sweep: Sweep, context: RunContext) -> None:
    """Call the losses of both recipes on two inputs.

    Raises:
        UserError: one raises, or does not give one number that depends on the outputs.
    """
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes that do not fit warn first, then raise
        model = context.new_model(seed=0)
        train = context.data.train
        for key, recipe in (("recipe", sweep.recipe), ("retrain", sweep.retrain)):
            said = f"{key}.loss = '{recipe.loss}'"
            try:
                answers = model(train.inputs[:2])
                value = recipe.training_loss(answers, train.targets[:2])
            except Exception as error:  # a user's function may raise anything
                reason = (str(error).splitlines() or [""])[0]
                raise UserError(f"{said} raised {type(error).__name__}: {reason}") from error
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"{said} returned {got}; the mean loss of the batch is expected, one number of torch's")


def try_pruner(sweep: Sweep, context: RunContext) -> None:
    """Prune a fresh model to the lowest density, where the pruner or the allocation is a user's own.

    Raises:
        UserError: one raises, or its scores or counts do not fit.
    """
    load = sweep.load
    if ":" not in load.pruner + load.allocation:
        return
    said = f"[load] pruner = '{load.pruner}', allocation = '{load.allocation}'"
    with one_thread():
        generator, loss_fn = torch.Generator().manual_seed(0), sweep.recipe.loss_fn
        try:
            prune(
                context.new_model(seed=0),
                min(load.density),
                load.pruner,
                load.allocation,
                context.data,
                generator,
                loss_fn,
            )
        except UserError as error:
            raise UserError(f"{said}: {error}") from error
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"{said} raised {type(error).__name__}: {reason}") from error


def try_channels(sweep: Sweep, context: RunContext) -> None:
    """Take channels from a fresh model down to each density.

    Raises:
        UserError: torch-pruning is missing or cannot follow the model, or a density is out of reach.
    """
    with one_thread(), torch.no_grad():
        model = context.new_model(seed=0)
        for density in sweep.load.density:
            shrink(model, density, context.data.train.inputs[:2], sweep.load.pruner, sweep.load.allocation, seed=0)


def try_discovery(sweep: Sweep, context: RunContext) -> None:
    """Look for units and blocks in a fresh model.

    Raises:
        UserError: torch-pruning is missing or cannot follow the model, nothing in it can leave, or an estimator is
            unknown.
    """
    load(ESTIMATORS, sweep.load.discover.estimator, "estimator")
    with one_thread():
        anatomy_of(context.new_model(seed=0), context.data.train.inputs[:2])
