"""Searches that are really trained, beside the same ones replayed: do replay and life agree?"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import Trial

from regimes.errors import UserError
from regimes.figures.sheet import Sheet
from regimes.hpo import SAMPLERS, STOPPERS
from regimes.hpo.climb import Climb
from regimes.hpo.drive import Limits, work
from regimes.hpo.ladder import Stretch, ladder_of
from regimes.hpo.making import Making, full_rung, proxy_rung
from regimes.hpo.plan import extremes, lab_of
from regimes.hpo.trainer import Trainer, Value
from regimes.proof.arms import ARMS, BASE, OWN_STOCK, Arm, Found, Stage
from regimes.registry import load
from regimes.spec.hpo import Hpo

LIVE = (BASE, "TPE + hyperband", "ours, no map")
FILE = "live.json"


def search_live(arm: Arm, spec: Hpo, folder: Path, seed: int) -> dict[str, Any]:
    """Do an arm's search by training, with a free sampler; returns its marks and seconds by the clock."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lab = lab_of(spec, "cpu", folder)
    started = time.perf_counter()
    make = Making(lab, spec.recipe, "narrowed", batch=arm.batch, seed=spec.seed, extremes=extremes(spec))
    below = [proxy_rung(make, _density(name)) for name in arm.courses]
    ladder = ladder_of([*below, full_rung(make)], arm.reports)
    marks: list[dict[str, Any]] = []
    chosen = spec.study.value

    def watch(trial: Trial, stretch: Stretch, value: Value) -> None:
        rung = ladder.rungs[stretch.rung]
        if rung.density == 1 and stretch.stop == rung.epochs and not value.why:
            seconds = time.perf_counter() - started
            marks.append({"seconds": seconds, "value": getattr(value, chosen), "params": dict(trial.params)})

    steps = [each.step for each in ladder.stretches]
    kind, _, own = arm.stopper.partition(" ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stopper = OWN_STOCK[own]() if kind == "own" else load(STOPPERS, kind, "stopper")(steps)
        study = optuna.create_study(sampler=load(SAMPLERS, arm.sampler, "sampler")(seed), pruner=stopper)
    climb = Climb(Trainer(lab, ladder, seed), spec.space, spec.recipe, chosen, watch=watch)
    work(study, climb, arm.batch, Limits(spec.trials))
    return {"arm": arm.name, "seed": seed, "seconds": time.perf_counter() - started, "marks": marks}


def _density(course: str) -> float:
    return next(float(part) for part in reversed(course.split()) if part.replace(".", "").isdigit())


def go_live(stage: Stage, folder: Path, say: Callable[[str], None], seed: int = 0) -> None:
    """Train the arms in `LIVE`, one after the other; what is done is kept."""
    path = folder / FILE
    done = _read(path)
    for name in LIVE:
        if not any(each["arm"] == name and each["seed"] == seed for each in done):
            arm = next(each for each in ARMS if each.name == name)
            done.append(search_live(arm, stage.spec, folder, seed))
            path.write_text(json.dumps(done, indent=1) + "\n")
            say(f"{name}: trained live, {done[-1]['seconds']:.0f} s")


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text()))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: is no list of live searches; remove it, and they are trained anew") from error


def beside(folder: Path, found: Mapping[str, Sequence[Found]]) -> list[Sheet]:
    """The live searches beside their replays; nothing where none was trained."""
    done = _read(folder / FILE)
    if not done:
        return []
    rows = [["search", "trained live: seconds", "replayed", "full trainings", "replayed", "best value", "replayed"]]
    for each in done:
        replays = found[each["arm"]]
        best = min((mark["value"] for mark in each["marks"]), default=math.inf)
        rows.append(
            [
                each["arm"],
                f"{each['seconds']:.0f}",
                _range([one.seconds for one in replays], "{:.0f}"),
                str(len(each["marks"])),
                _range([len(one.marks) for one in replays], "{:.0f}"),
                f"{best:.3f}",
                _range([min(mark[2] for mark in one.marks) for one in replays if one.marks], "{:.3f}"),
            ]
        )
    notes = ["live: a free sampler, new trainings, seconds by the clock; replayed: median, least and greatest"]
    return [Sheet("Do replay and life agree?", rows, notes, done)]


def _range(values: Sequence[float], form: str) -> str:
    low, middle, high = (form.format(each) for each in (min(values), float(np.median(values)), max(values)))
    return f"{middle} ({low} to {high})"
