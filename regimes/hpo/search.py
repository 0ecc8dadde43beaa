"""A whole search, as ``regimes hpo`` does it: map, plan, study, winner, savings; resumes where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from regimes.errors import RunFailed, UserError
from regimes.flow.files import Damaged, read_checked, write_checked
from regimes.flow.lab import Lab
from regimes.hpo.climb import Watch
from regimes.hpo.crew import Post, crew
from regimes.hpo.drive import Limits, begin, climb_of, final, study_of, winner_of, work
from regimes.hpo.notes import PREFIX
from regimes.hpo.phase import BASE, phase_of, phases, promote
from regimes.hpo.plan import Plan, Say, guide_of, keep, kept, lab_of, plan
from regimes.hpo.savings import savings, stopped_at
from regimes.hpo.study import JOURNAL, adopt, counted, open_storage
from regimes.spec.hpo import Hpo
from regimes.spec.keys import digest

RESULT = "result.json"
Look = Callable[[optuna.Study, Plan], None]


@dataclass(frozen=True)
class Asked:
    """How a search is to be done.

    Attributes:
        folder: of its files.
        map: of a run or grid; None: made, or none.
        storage: of the study; None: a journal in the folder.
        timeout: seconds from which nothing new is begun.
        workers: processes; 1: this one.
        device: "cpu", "cuda", ...
        take_over: whether trials that other machines hold count as given up.
    """

    folder: Path
    map: Path | None = None
    storage: str | None = None
    timeout: float = math.inf
    workers: int = 1
    device: str = "cpu"
    take_over: bool = False


def search(
    spec: Hpo, asked: Asked, say: Say = lambda text: None, watch: Watch | None = None, look: Look | None = None
) -> dict[str, Any]:
    """Do a search, or what is left of it; returns its result as plain data, which stands in the folder too.

    Args:
        spec: what is searched.
        asked: how.
        say: called with what was decided, in words.
        watch: called after every stretch of every trial, where there is one process.
        look: called every now and then, where there are several.

    Raises:
        UserError: a map, storage or study that does not fit; no trial reached the full network.
    """
    started = time.monotonic()
    deadline = started + asked.timeout
    asked.folder.mkdir(parents=True, exist_ok=True)
    url = asked.storage or str(asked.folder / JOURNAL)
    storage = open_storage(url)
    lab = lab_of(spec, asked.device, asked.folder)
    whole = kept(spec, lab, asked.folder)
    if whole is None:
        guide = guide_of(spec, asked.map, asked.folder, asked.workers, asked.device, say)
        whole = plan(spec, lab, guide, asked.workers, say)
        keep(whole, asked.folder)
        whole = kept(spec, lab, asked.folder) or whole
    _check_same(whole, asked)
    studies: list[optuna.Study] = []
    for phase in phases(whole):
        part = phase_of(whole, phase)
        study, trials = study_of(part, lab, storage), spec.trials
        if phase == BASE and time.monotonic() >= deadline and not _all_done(studies[0], spec):
            break
        if phase == BASE:
            trials = _promoted(studies[0], study, spec, say)
        else:
            begin(study, part)
        studies.append(study)
        again = adopt(study, asked.take_over)
        if again:
            say(f"{len(again)} trials were cut off and are done again: {', '.join(map(str, again))}")
        _work(part, phase, spec, study, lab, asked, (url, trials, deadline), watch, look)
    return _finish(whole, studies, lab, asked.folder, say)


def _check_same(whole: Plan, asked: Asked) -> None:
    """A search that is gone on with keeps its map and its device: rungs and their costs rest on them."""
    name = whole.guide.name if whole.guide else None
    if asked.map is not None and str(asked.map.resolve()) != name:
        raise UserError(f"--map {asked.map}: this search was begun with {name or 'no map'}; take another --out")
    if asked.device != whole.device:
        raise UserError(f"--device {asked.device}: this search was begun on {whole.device}; take another --out")


def _all_done(proxies: optuna.Study, spec: Hpo) -> bool:
    trials = proxies.get_trials(deepcopy=False)
    return counted(trials) >= spec.trials and not any(each.state == TrialState.RUNNING for each in trials)


def _promoted(proxies: optuna.Study, base: optuna.Study, spec: Hpo, say: Say) -> int:
    """Promote the best proxies, all of which are done by now; returns how many trials the full network is to have."""
    if not _all_done(proxies, spec):
        raise RunFailed(
            f"study '{proxies.study_name}': {counted(proxies.get_trials(deepcopy=False))} of {spec.trials} proxies are "
            "done; the best are promoted when all are: the same command goes on"
        )
    before = len(base.get_trials(deepcopy=False))
    best = promote(proxies, base, spec.study.promoted)
    if len(base.get_trials(deepcopy=False)) > before:
        say(f"proxies are done; the best {len(best)} are trained in full")
    return len({each.user_attrs.get(f"{PREFIX}promoted") for each in base.get_trials(deepcopy=False)} - {None})


def _work(
    part: Plan,
    phase: str,
    spec: Hpo,
    study: optuna.Study,
    lab: Lab,
    asked: Asked,
    until: tuple[str, int, float],
    watch: Watch | None,
    look: Look | None,
) -> None:
    url, trials, deadline = until
    if asked.workers <= 1:
        climb = climb_of(part, lab, asked.folder, watch, deadline)
        work(study, climb, part.spec.batch, Limits(trials, deadline))
        return
    seen = (lambda: look(study, part)) if look else (lambda: None)
    ends = time.time() + deadline - time.monotonic()
    batch = max(1, part.spec.batch // asked.workers)
    crew(Post(asked.folder, url, asked.device, phase, batch, trials, ends), spec, study, asked.workers, seen)


def _finish(whole: Plan, studies: list[optuna.Study], lab: Lab, folder: Path, say: Say) -> dict[str, Any]:
    in_full = [study for study in studies if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    winner, notes = winner_of([*studies[:1], *in_full][-1]), list(whole.notes)
    if winner.user_attrs.get(f"{PREFIX}climb", [{}])[-1].get("density") != 1:
        notes.append("time was up before any trial was trained in full: the best proxy's values are taken")
        say(notes[-1])
    result: dict[str, Any] = {"name": whole.spec.name, "key": _key(whole, winner), "notes": notes}
    before = _before(folder / RESULT)
    if before is not None and before["key"] == result["key"]:
        result["winner"] = before["winner"]  # judged on the test split once
    else:
        say(f"trial {winner.number} is the best; it is trained {whole.spec.final_seeds} times anew and tested")
        result["winner"] = final(whole, lab, winner)
    result["stopped"] = {study.study_name: {str(k): n for k, n in stopped_at(study).items()} for study in studies}
    result["value"] = whole.spec.study.value
    result["savings"] = savings(studies, whole)
    result["ladder"] = whole.ladder.facts()
    result["steps"] = [each.step for each in whole.ladder.stretches]
    result["failed"] = [
        {"trial": each.number, "why": each.user_attrs.get("regimes:why", "cut off"), "params": each.params}
        for study in studies
        for each in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    ]
    write_checked(folder / RESULT, result)
    return result


def _key(whole: Plan, winner: FrozenTrial) -> str:
    return digest([winner.params, winner.number, whole.spec.final_seeds, whole.spec.seed])


def _before(path: Path) -> dict[str, Any] | None:
    try:
        return read_checked(path)
    except Damaged:
        return None
