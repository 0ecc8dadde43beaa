"""Optuna storage and study of a search, and requeueing of trials whose process is gone."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from regimes.config.hpo import StudySpec
from regimes.config.keys import seed_of
from regimes.errors import UserError
from regimes.hpo import SAMPLERS, STOPPERS
from regimes.hpo.process_identity import is_dead, is_here, this_worker
from regimes.hpo.search_space import Space, distributions
from regimes.hpo.trial_attrs import PREFIX
from regimes.registry import lookup

JOURNAL = "study.log"
STORAGE_URLS = "a journal file ending in .log, sqlite:///FILE.db, postgresql+psycopg://USER@HOST/NAME, any Optuna URL"
INHERITED_ATTRS = tuple(f"{PREFIX}{name}" for name in ("seed", "promoted", "from"))  # of a requeued trial
UNNAMED_TRIAL_TIMEOUT = 60  # seconds after which a trial without a worker's name counts as dead
LOCK_GRACE_PERIOD = 5  # seconds after which a journal's lock counts as stale


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Open a storage: a journal file (``.log``) or a database URL.

    Raises:
        UserError: the URL is not valid, or the storage cannot be reached.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "://" in url:
                return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            if not url.endswith(".log"):
                raise UserError(f"--storage {url}: not a storage; allowed: {STORAGE_URLS}")
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            lock = JournalFileOpenLock(url, grace_period=LOCK_GRACE_PERIOD)
            return JournalStorage(JournalFileBackend(url, lock_obj=lock))
    except UserError:
        raise
    except Exception as error:  # missing driver, unreachable server, not a journal file
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"--storage {url}: {type(error).__name__}: {reason}; allowed: {STORAGE_URLS}") from error


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    spec: StudySpec,
    space: Space,
    steps: Sequence[int],
    identity: Mapping[str, Any],
    seed: int,
    worker: int = 0,
) -> optuna.Study:
    """Create a study, or open an existing one of that name.

    Args:
        storage: storage made by `open_storage`.
        name: name of the study.
        spec: sampler and stopper.
        space: the search space.
        steps: Optuna steps of the fidelities' reports.
        identity: everything that values depend on (data, model, recipe, fidelities), as plain data.
        seed: seed of the sampler.
        worker: number of the worker; workers sample different points.

    Raises:
        UserError: a study of that name exists with another space or identity.
    """
    sampler = _made(lookup(SAMPLERS, spec.sampler, "sampler"), spec.sampler_options, "study.sampler_options")
    stopper = _made(lookup(STOPPERS, spec.stopper, "stopper"), spec.stopper_options, "study.stopper_options", steps)
    before = [each.study_name for each in optuna.get_all_study_summaries(storage, include_best_trial=False)]
    trials: list[FrozenTrial] = []
    if name in before:
        trials = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler()).trials
    # Concurrent commands must not sample the same points.
    others = [this_worker()] if any(is_open(each) and not _is_gone(each) for each in trials) else []
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler(seed_of("sampler", seed, worker, len(trials), *others) % 2**31),
        pruner=stopper(),
        direction="minimize",
        load_if_exists=True,
    )
    check_unchanged(study, space, identity)
    return study


def _made(make: Any, options: Mapping[str, Any], key: str, *given: Any) -> Any:
    def build(*more: Any) -> Any:
        try:
            return make(*given, *more, **options)
        except (TypeError, ValueError) as error:
            raise UserError(f"{key}: {str(error).splitlines()[0]}") from error

    return build


def check_unchanged(study: optuna.Study, space: Space, identity: Mapping[str, Any]) -> None:
    """Refuse to resume a study whose search space or identity changed; store both in a new study.

    Raises:
        UserError: the space or the identity differs.
    """
    now = {
        "space": {name: json.loads(distribution_to_json(each)) for name, each in distributions(space).items()},
        "science": json.loads(json.dumps(identity)),
    }
    begun = study.user_attrs
    for what, words in (("space", "another space"), ("science", "another task")):
        before = begun.get(PREFIX + what)
        if before is None:
            study.set_user_attr(PREFIX + what, now[what])
        elif before != now[what]:
            changed = ", ".join(_changes(before, now[what]))
            raise UserError(
                f"study '{study.study_name}' was started with {words} ({changed}); its trials are kept: "
                "use another name or --out, or undo the change"
            )


def _changes(before: Any, now: Any, at: str = "") -> list[str]:
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [f"{at}: {_short(before)} -> {_short(now)}"]
    found: list[str] = []
    for key in sorted({*before, *now}, key=str):
        if before.get(key) != now.get(key):
            found += _changes(before.get(key), now.get(key), f"{at}.{key}" if at else str(key))
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def requeue_dead_trials(study: optuna.Study, elsewhere: bool = False) -> list[int]:
    """Mark trials whose process is gone as failed and enqueue their values again; returns their numbers.

    Segments that they finished are read from the store. Processes of other machines cannot be checked: their trials
    count as running, or as gone if ``elsewhere`` is true.
    """
    dead = []
    again = {each.user_attrs.get(f"{PREFIX}instead_of") for each in study.get_trials(deepcopy=False)}
    for trial in study.get_trials(deepcopy=False):
        gone = is_open(trial) and _is_gone(trial, elsewhere)
        cut_off = gone or trial.user_attrs.get(f"{PREFIX}unfinished")
        values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if cut_off and trial.number not in again and values:
            kept = {name: each for name, each in trial.user_attrs.items() if name in INHERITED_ATTRS}
            about = {f"{PREFIX}seed": trial.number, **kept, f"{PREFIX}instead_of": trial.number}
            study.enqueue_trial(values, user_attrs=about)  # before FAIL: a kill in between loses nothing
            dead.append(trial.number)
        if gone:
            with contextlib.suppress(RuntimeError, ValueError):  # already finished by another process
                study.tell(trial.number, state=TrialState.FAIL)
    return dead


def _is_gone(trial: FrozenTrial, elsewhere: bool = False) -> bool:
    name = trial.user_attrs.get(f"{PREFIX}worker")
    if name is not None:
        return is_dead(name) or (elsewhere and not is_here(name))
    assert trial.datetime_start is not None
    return abs((datetime.now() - trial.datetime_start).total_seconds()) > UNNAMED_TRIAL_TIMEOUT


def is_open(trial: FrozenTrial) -> bool:
    """Return whether a trial is running."""
    return trial.state == TrialState.RUNNING


def count_finished(trials: Sequence[FrozenTrial]) -> int:
    """Return the number of trials that count towards the limit: finished ones, and running ones with a known worker.

    Trials that were interrupted and enqueued again do not count, nor running ones without the name of a worker.
    """
    finished = sum(each.state in (TrialState.COMPLETE, TrialState.PRUNED) for each in trials)
    failed = sum(each.state == TrialState.FAIL and f"{PREFIX}why" in each.user_attrs for each in trials)
    return finished + failed + sum(is_open(each) and f"{PREFIX}worker" in each.user_attrs for each in trials)


def is_duplicate(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether an earlier trial has the same origin, because two processes enqueued it at once."""
    for name in (f"{PREFIX}promoted", f"{PREFIX}instead_of"):
        if name in trial.user_attrs:
            same = [each for each in trials[: trial.number] if each.user_attrs.get(name) == trial.user_attrs[name]]
            return any(each.state != TrialState.FAIL or f"{PREFIX}why" in each.user_attrs for each in same)
    return False


def holders(study: optuna.Study) -> list[str]:
    """Return the machines whose workers hold running trials."""
    names = (each.user_attrs.get(f"{PREFIX}worker", "?/") for each in study.get_trials(deepcopy=False) if is_open(each))
    return sorted({name.rsplit("/", 2)[0] for name in names})
