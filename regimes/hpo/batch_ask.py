"""Asking a study for a batch of trials, so that their proxies fill a fleet and every value comes up."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
from optuna.trial import Trial

from regimes.errors import UserError
from regimes.hpo.process_identity import this_worker
from regimes.hpo.search_space import Space, suggest
from regimes.hpo.trial_attrs import note
from regimes.training.fleet import PER_NETWORK_FIELDS

SHARED = 8  # trials of a batch that share a batch size, at least: as many as a fleet of even channels needs
RANGE = (0, 1, 2, 3)  # of a range as many values are counted


def ask(study: optuna.Study, count: int, space: Space, together: int) -> list[Trial]:
    """New trials of a study, their values drawn.

    Where proxies stack, some trials share what lanes of a fleet cannot differ in (the batch size): the first of them
    draws it. They are as many as `shared`. Values that wait in the study stay as they are.

    Args:
        study: minimises one value.
        count: trials.
        space: of the hyperparameters.
        together: proxies that stack.

    Raises:
        UserError: the sampler or a value cannot be used.
    """
    check(study)
    names, size = sorted(set(space) - set(PER_NETWORK_FIELDS)), shared(study, count, space, together)
    sampler, trials = study.sampler, list[Trial]()
    try:
        for number in range(count):
            if number % size:
                study.sampler = _partly({name: trials[-1].params[name] for name in names}, sampler)
            else:
                study.sampler = sampler
            trials.append(study.ask())
            note(trials[-1], "worker", this_worker())
            suggest(trials[-1], space)
    except (TypeError, ValueError) as error:
        raise UserError(f"study.sampler: {str(error).splitlines()[0]}") from error
    finally:
        study.sampler = sampler
    return trials


def shared(study: optuna.Study, count: int, space: Space, together: int) -> int:
    """How many of a batch share a batch size: as many as stack, but each value may come up in every batch."""
    names = set(space) - set(PER_NETWORK_FIELDS)
    if not names or together == 1 or isinstance(study.sampler, optuna.samplers.CmaEsSampler):
        return 1  # CMA-ES learns from whole points only
    values = max(len(space[name].choices or RANGE) for name in names)
    return max(1, min(together, max(SHARED, math.ceil(count / values))))


def check(study: optuna.Study) -> None:
    """Refuse a study that does not minimise one value."""
    if study.directions != [optuna.study.StudyDirection.MINIMIZE]:
        raise UserError(f"study '{study.study_name}' does not minimise one value; losses and errors are minimised")


def _partly(values: dict[str, Any], sampler: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
    if hasattr(sampler, "partly"):
        return sampler.partly(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls it experimental
        return optuna.samplers.PartialFixedSampler(values, sampler)
