"""Checkpoints named on the command line: their model, data and weights."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regimes.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from regimes.config.sweep import Sweep
    from regimes.experiment.context import RunContext


def prepare_measurement(
    model: str, data: str, metrics: Sequence[str], changes: list[str], device: str, command: str
) -> tuple[Sweep, RunContext]:
    """Return the sections of a sweep that measuring needs, validated like those of a file, and their context.

    Args:
        model, data: names, or import paths.
        metrics: names of metrics.
        changes: options as KEY=VALUE.
        device: device name.
        command: name of the command, for messages.

    Raises:
        UserError: an unknown name or option, or targets that the loss does not take.
    """
    from regimes.config.overrides import apply_overrides
    from regimes.config.sweep_file import resolve_sweep
    from regimes.experiment.context import ContextSpec, RunContext
    from regimes.registry import allow_imports_from

    allow_imports_from(os.getcwd())
    raw: dict[str, Any] = {
        "data": {"name": data},
        "model": {"name": model},
        "measure": {"metrics": list(metrics)},
        "recipe": {"augment": "none"},
        "temperature": {"epochs": [1]},
        "load": {"density": [1.0]},
    }
    sweep = resolve_sweep(apply_overrides(raw, changes), f"regimes {command}", command)
    context = RunContext(ContextSpec.eager(sweep.data, sweep.model, device))
    context.check_model()
    if context.loaded.regression and sweep.recipe.loss == "cross-entropy":
        raise UserError("the targets are numbers, not classes; add --set recipe.loss=mse")
    return sweep, context


def expand_files(files: Sequence[Path]) -> list[Path]:
    """Return the files, and in place of a path with ``*`` that the shell has not expanded those that it matches.

    Raises:
        UserError: no file matches.
    """
    from regimes.config.checkpoint_patterns import matching_files

    found: list[Path] = []
    for file in files:
        several = "*" in str(file) and not file.exists()
        found += [Path(each) for each in matching_files(file)] if several else [file]
        if several and not matching_files(file):
            raise UserError(f"no file matches '{file}'")
    return found


def read_networks(files: Sequence[Path], context: RunContext) -> list[nn.Module]:
    """Return the networks of state dicts, in eval mode; warn if two are the same.

    Raises:
        UserError: a file is missing, damaged, or does not fit the model.
    """
    import torch

    networks = [context.read_network(str(file)) for file in files]
    for (one, first), (two, second) in itertools.combinations(zip(files, networks, strict=True), 2):
        states = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        if all(torch.equal(*pair) for pair in states):
            warnings.warn(f"{one} and {two} hold the same weights", stacklevel=2)
    return networks
