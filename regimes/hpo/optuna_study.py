"""Optuna storage and study of a search."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

from regimes.config.hpo import StudySpec
from regimes.config.keys import seed_of
from regimes.errors import UserError, without_passwords
from regimes.experiment.process_identity import this_worker
from regimes.hpo import SAMPLERS, STOPPERS
from regimes.hpo.requeue import is_gone, is_open
from regimes.hpo.search_space import Space, distributions
from regimes.hpo.trial_attrs import PREFIX
from regimes.registry import lookup

JOURNAL = "study.log"
STORAGE_URLS = "a journal file ending in .log, sqlite:///FILE.db, postgresql+psycopg://USER@HOST/NAME, any Optuna URL"
OPEN_ATTEMPTS = 6  # of a database whose tables another process is making
MADE_AT_ONCE_TEXTS = ("already exists", "unique constraint", "duplicate key", "database is locked")


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Open a storage: a journal file (``.log``) or a database URL.

    Raises:
        UserError: the URL is not valid, or the storage cannot be reached.
    """
    from optuna.storages import JournalStorage

    from regimes.hpo.journal import Journal

    shown = without_passwords("".join(url.split()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "://" in url:
                return _database(url)
            if not url.endswith(".log"):
                raise UserError(f"--storage {shown}: not a storage; allowed: {STORAGE_URLS}")
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(Journal(url))
    except UserError:
        raise
    except Exception as error:  # missing driver, unreachable server, not a journal file
        reason = (str(error).replace(url, shown).splitlines() or [""])[0]
        raise UserError(f"--storage {shown}: {type(error).__name__}: {reason}; allowed: {STORAGE_URLS}") from error


def _database(url: str) -> optuna.storages.RDBStorage:
    """Open a database; if another process makes its tables at the same time, try again."""
    for attempt in range(OPEN_ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except Exception as error:  # each database has its own errors
            text = str(error).lower()
            if attempt + 1 == OPEN_ATTEMPTS or not any(words in text for words in MADE_AT_ONCE_TEXTS):
                raise
        time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    spec: StudySpec,
    space: Space,
    steps: Sequence[int],
    identity: Mapping[str, Any],
    seed: int,
    worker: int = 0,
    values: int = 1,
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
        values: number of values that are minimised.

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
    others = [this_worker()] if any(is_open(each) and not is_gone(each) for each in trials) else []
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler(seed_of("sampler", seed, worker, len(trials), *others) % 2**31),
        pruner=stopper(),
        directions=["minimize"] * values,
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
