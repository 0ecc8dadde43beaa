"""The study: where it is kept, what it searches, and what becomes of trials whose process is gone."""

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
from regimes.registry import load

JOURNAL = "study.log"
KNOWN = "a journal file ending in .log, sqlite:///FILE.db, postgresql+psycopg://USER@HOST/NAME, or what Optuna takes"
KEPT = tuple(f"{PREFIX}{name}" for name in ("seed", "promoted", "from"))  # what a trial hands on
NAMELESS = 60  # seconds after which a trial without a worker is given up: it was cut off as it began
GRACE = 5  # seconds after which a journal's lock counts as left behind by a killed process


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """A journal file or a database.

    Raises:
        UserError: it is none, or cannot be reached.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "://" in url:
                return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            if not url.endswith(".log"):
                raise UserError(f"--storage {url}: no storage; allowed: {KNOWN}")
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            lock = JournalFileOpenLock(url, grace_period=GRACE)
            return JournalStorage(JournalFileBackend(url, lock_obj=lock))
    except UserError:
        raise
    except Exception as error:  # a driver that is missing, a server that is down, a file that is something else
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"--storage {url}: {type(error).__name__}: {reason}; allowed: {KNOWN}") from error


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    spec: StudySpec,
    space: Space,
    steps: Sequence[int],
    science: Mapping[str, Any],
    seed: int,
    worker: int = 0,
) -> optuna.Study:
    """The study of a name, made now or before.

    Args:
        storage: see `open_storage`.
        name: of the study.
        spec: sampler and stopper.
        space: that is searched.
        steps: of the ladder.
        science: what its values rest on: data, model, recipe, ladder.
        seed: of the sampler.
        worker: its number; each asks for points of its own.

    Raises:
        UserError: a study of that name is there, and it searches another space, or something else.
    """
    sampler = _made(load(SAMPLERS, spec.sampler, "sampler"), spec.sampler_options, "study.sampler_options")
    stopper = _made(load(STOPPERS, spec.stopper, "stopper"), spec.stopper_options, "study.stopper_options", steps)
    before = [each.study_name for each in optuna.get_all_study_summaries(storage, include_best_trial=False)]
    trials: list[FrozenTrial] = []
    if name in before:
        trials = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler()).trials
    # Commands that work at the same time must not ask for the same points.
    others = [this_worker()] if any(is_open(each) and not _is_gone(each) for each in trials) else []
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler(seed_of("sampler", seed, worker, len(trials), *others) % 2**31),
        pruner=stopper(),
        direction="minimize",
        load_if_exists=True,
    )
    check_unchanged(study, space, science)
    return study


def _made(make: Any, options: Mapping[str, Any], key: str, *given: Any) -> Any:
    def build(*more: Any) -> Any:
        try:
            return make(*given, *more, **options)
        except (TypeError, ValueError) as error:
            raise UserError(f"{key}: {str(error).splitlines()[0]}") from error

    return build


def check_unchanged(study: optuna.Study, space: Space, science: Mapping[str, Any]) -> None:
    """Hold a study to what it was begun with: values of different spaces, or of different networks, do not compare."""
    now = {
        "space": {name: json.loads(distribution_to_json(each)) for name, each in distributions(space).items()},
        "science": json.loads(json.dumps(science)),
    }
    begun = study.user_attrs
    for what, words in (("space", "another space"), ("science", "other networks")):
        before = begun.get(PREFIX + what)
        if before is None:
            study.set_user_attr(PREFIX + what, now[what])
        elif before != now[what]:
            changed = ", ".join(_changes(before, now[what]))
            raise UserError(
                f"study '{study.study_name}' was begun with {words} ({changed}); its trials are kept: "
                "take another name or --out, or put the file back as it was"
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
    """Mark trials failed whose process is gone, and ask for their values once more; returns their numbers.

    What they had finished of their climb is in the store, and is not trained again. Of other machines nothing is known:
    with ``elsewhere`` their trials count as gone too.
    """
    dead = []
    again = {each.user_attrs.get(f"{PREFIX}instead_of") for each in study.get_trials(deepcopy=False)}
    for trial in study.get_trials(deepcopy=False):
        gone = is_open(trial) and _is_gone(trial, elsewhere)
        cut_off = gone or trial.user_attrs.get(f"{PREFIX}unfinished")
        values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if cut_off and trial.number not in again and values:
            kept = {name: each for name, each in trial.user_attrs.items() if name in KEPT}
            about = {f"{PREFIX}seed": trial.number, **kept, f"{PREFIX}instead_of": trial.number}
            study.enqueue_trial(values, user_attrs=about)  # before it is failed: a kill between loses nothing
            dead.append(trial.number)
        if gone:
            with contextlib.suppress(RuntimeError, ValueError):  # another command was quicker
                study.tell(trial.number, state=TrialState.FAIL)
    return dead


def _is_gone(trial: FrozenTrial, elsewhere: bool = False) -> bool:
    name = trial.user_attrs.get(f"{PREFIX}worker")
    if name is not None:
        return is_dead(name) or (elsewhere and not is_here(name))
    assert trial.datetime_start is not None
    return abs((datetime.now() - trial.datetime_start).total_seconds()) > NAMELESS


def is_open(trial: FrozenTrial) -> bool:
    """Whether a trial is under way."""
    return trial.state == TrialState.RUNNING


def count_finished(trials: Sequence[FrozenTrial]) -> int:
    """Trials that count towards those asked for: all but the ones that were cut off and asked for once more, and those
    that a process was killed over before it had said its name."""
    told = sum(each.state in (TrialState.COMPLETE, TrialState.PRUNED) for each in trials)
    failed = sum(each.state == TrialState.FAIL and f"{PREFIX}why" in each.user_attrs for each in trials)
    return told + failed + sum(is_open(each) and f"{PREFIX}worker" in each.user_attrs for each in trials)


def is_duplicate(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether an earlier trial stands for the same one: two commands may have asked for it at the same moment."""
    for name in (f"{PREFIX}promoted", f"{PREFIX}instead_of"):
        if name in trial.user_attrs:
            same = [each for each in trials[: trial.number] if each.user_attrs.get(name) == trial.user_attrs[name]]
            return any(each.state != TrialState.FAIL or f"{PREFIX}why" in each.user_attrs for each in same)
    return False


def holders(study: optuna.Study) -> list[str]:
    """Machines whose workers hold trials that are under way."""
    names = (each.user_attrs.get(f"{PREFIX}worker", "?/") for each in study.get_trials(deepcopy=False) if is_open(each))
    return sorted({name.rsplit("/", 2)[0] for name in names})
