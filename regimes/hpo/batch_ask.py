"""Ask an Optuna study for a batch of trials whose proxies can be trained as one fleet."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, check_distribution_compatibility
from optuna.trial import Trial, TrialState

from regimes.errors import UserError
from regimes.experiment.process_identity import this_worker
from regimes.hpo.exhaustion import EXHAUSTIBLE_SAMPLERS
from regimes.hpo.search_space import Space, distributions, suggest
from regimes.hpo.trial_attrs import note
from regimes.training.fleet import PER_NETWORK_FIELDS

MIN_GROUP = 8  # smallest group of trials with one batch size: the size from which even channels stack
RANGE_AS_CHOICES = (0, 1, 2, 3)  # a range counts as this many values


def ask(
    study: optuna.Study,
    count: int,
    space: Space,
    stack_size: int,
    held: Collection[str] = (),
    min_group: int = MIN_GROUP,
) -> list[Trial]:
    """Ask a study for new trials and sample their hyperparameters.

    If proxies stack, consecutive trials form groups that share the hyperparameters in which lanes of a fleet cannot
    differ (the batch size): the first trial of a group samples them; see `group_size`. Values of enqueued trials are
    not changed.

    Args:
        study: the study.
        count: number of trials.
        space: the search space.
        stack_size: number of networks that are trained together.
        held: hyperparameters of the space that do not concern the training.
        min_group: smallest group, see `group_size`.

    Raises:
        UserError: the study's trials have another space, or its sampler rejects the space.
    """
    check_space(study, space)
    trained = {name: each for name, each in space.items() if name not in held}
    names, size = (
        sorted(set(trained) - set(PER_NETWORK_FIELDS)),
        group_size(study, count, trained, stack_size, min_group),
    )
    sampler, trials = study.sampler, list[Trial]()
    try:
        for number in range(count):
            if number % size:
                study.sampler = fixed_sampler({name: trials[-1].params[name] for name in names}, sampler)
            else:
                study.sampler = sampler
            trials.append(study.ask())
            note(trials[-1], "worker", this_worker())
            suggest(trials[-1], space)
    except (TypeError, ValueError, KeyError) as error:
        for each in trials:
            study.tell(each, state=TrialState.FAIL)
        raise UserError(f"study.sampler: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    finally:
        study.sampler = sampler
    return trials


def group_size(study: optuna.Study, count: int, space: Space, stack_size: int, min_group: int = MIN_GROUP) -> int:
    """Return how many consecutive trials of a batch share a batch size.

    At most ``stack_size``, at least ``min_group``, and few enough otherwise that each value of the batch size can occur
    in every batch; 1 for CMA-ES,
    which learns only from points that it sampled as a whole, and for samplers that try every setting once.
    """
    names = set(space) - set(PER_NETWORK_FIELDS)
    if not names or stack_size == 1 or isinstance(study.sampler, (optuna.samplers.CmaEsSampler, *EXHAUSTIBLE_SAMPLERS)):
        return 1
    values = max(len(space[name].choices or RANGE_AS_CHOICES) for name in names)
    return max(1, min(stack_size, max(min_group, math.ceil(count / values))))


def check_minimises(study: optuna.Study) -> None:
    """Refuse a study that does not minimise a single value.

    Raises:
        UserError: the study maximises, or has several objectives.
    """
    if study.directions != [optuna.study.StudyDirection.MINIMIZE]:
        raise UserError(f"study '{study.study_name}' does not minimise one value; create it with direction='minimize'")


def check_space(study: optuna.Study, space: Space) -> None:
    """Refuse a study whose trials have a hyperparameter of another kind, or other choices of it.

    Raises:
        UserError: the study's distribution of a hyperparameter cannot be continued.
    """
    before: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        before.update(trial.distributions)
    for name, now in distributions(space).items():
        if name not in before:
            continue
        try:
            check_distribution_compatibility(before[name], now)
        except ValueError as error:
            raise UserError(
                f"space.{name}: study '{study.study_name}' was started with {_words(before[name])}, now it is "
                f"{_words(now)}; undo the change, or use another study"
            ) from error


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return str(list(distribution.choices))
    return str(distribution)


def fixed_sampler(values: dict[str, Any], sampler: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
    """Return a sampler with some values fixed."""
    if hasattr(sampler, "partly"):
        return sampler.partly(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls it experimental
        return optuna.samplers.PartialFixedSampler(values, sampler)
