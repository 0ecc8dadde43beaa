"""Record what searches are replayed on: some hundred settings, the full network and every proxy, all epochs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from regimes.config.hpo import WHOLE, Hpo
from regimes.config.hpo_file import read_hpo
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import read_toml
from regimes.data.dataset import Dataset
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.context import RunContext
from regimes.experiment.run_metadata import environment
from regimes.hpo import SAMPLERS
from regimes.hpo.plan import context_of, guide_of
from regimes.hpo.search_space import distributions
from regimes.plots.text_table import TextTable
from regimes.registry import load
from regimes.research.hpo_benchmark.existing_rows import ExistingRows
from regimes.research.hpo_benchmark.fidelities import COURSES, SEARCHED, as_facts, from_facts, rung_of
from regimes.research.hpo_benchmark.methods import PAIRS
from regimes.research.hpo_benchmark.optimum_shift import shift_between
from regimes.research.hpo_benchmark.record import RecordTask, Setting, recipes_of, record, row_of, settings, tasks_of
from regimes.research.hpo_benchmark.table import SEEDS, SearchTable, assemble, write_table
from regimes.research.hpo_benchmark.timing import idle, timed
from regimes.research.page import Page, Say

FILE = "sweeps/digits-proof.toml"
COUNT = 256  # settings
BETTER = 4  # one of so many settings is trained with more seeds
SHIFTED = ("narrowed 0.06", "narrowed 0.06, short")  # courses that are tried with corrected settings, too
SCALED = ("narrowed 0.06",)  # and with learning rates as many times as large as the network is narrower
RECORDING, MAP = "recording.nc", "map.nc"
TITLE = "A recording of searches on handwritten digits"
WORDS = [
    f"`{FILE}`: {COUNT} settings of learning rate, weight decay, batch size, SAM rho and label smoothing that fill the "
    "space evenly, each trained with two seeds on the full network (the better quarter with four), on proxies of "
    "several kinds, and on parts of the images; the validation loss after every epoch, the test error of the full "
    "network at its end, measured seconds. `python -m regimes.research bench hpo` replays searches on it.",
    "A command that was stopped is gone on with by the same one, and a course that was not thought of before is added: "
    "what stands in the recording is not trained again. The minutes above are those of the last.",
]


def study(out: Path, runs: Path, say: Say) -> Page:
    """Make the recording, or what is left of it."""
    spec = read_hpo(FILE)
    folder = runs / "recording"
    context = context_of(spec, "cpu", folder)
    found = settings(spec.space, COUNT)
    standing = ExistingRows.of(out / RECORDING, found)
    courses = _courses(spec, context, folder, standing, say)
    recipes = recipes_of(spec, found)
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}

    def do(place: int, members: Sequence[tuple[int, Recipe]], seed: int) -> None:
        course, rung = from_facts(courses[place], context, spec.recipe)
        known = standing.rows(course, [number for number, _ in members], seed)
        if known is not None:
            rows.update({(place, number, seed): row for number, row in known.items()})
            return
        say(f"{course.name}, seed {seed}: {len(members)} settings")
        tasks = list(tasks_of(course, rung, courses[place], members, seed))
        record(spec, folder, tasks, os.cpu_count() or 1, say)
        rows.update({(place, number, seed): row for number, row in _rows(folder, tasks, context)})

    for place, facts in enumerate(courses):
        for seed in range(facts["course"]["seeds"]):
            do(place, recipes, seed)
    better = _better(rows, len(found))
    for seed in range(SEARCHED, SEEDS):
        do(0, [recipes[number] for number in better], seed)
    moved = [standing.moved(name) or _shifted(name, courses, rows, found, spec, say) for name in SHIFTED]
    moved += [_scaled(name, courses) for name in SCALED]
    for facts in moved:
        courses.append(facts)
        do(len(courses) - 1, recipes, 0)
    default = standing.facts.get("default") or _default(spec, courses[0], context, folder, say)
    facts = _facts(spec, courses, context, folder, default, standing)
    data = assemble([each["course"]["name"] for each in courses], found, rows, spec.recipe.epochs, facts)
    write_table(data, out / RECORDING)
    facts["map"] = standing.facts.get("map") or _map(spec, folder, out, say)
    data.attrs["facts"] = json.dumps(facts, sort_keys=True)
    write_table(data, out / RECORDING)
    return Page("recording", TITLE, WORDS, [_sheet(data, facts)], facts=facts)


def _courses(spec: Hpo, context: RunContext, folder: Path, standing: ExistingRows, say: Say) -> list[dict[str, Any]]:
    """Every course, its network made and timed while nothing else runs; kept, so that a second command goes on."""
    path = folder / "courses.json"
    found = list((_read(path) or {"courses": standing.courses})["courses"])
    left = [course for course in COURSES if course.name not in [each["course"]["name"] for each in found]]
    if left:
        say(f"courses are made and timed; nothing else should run here ({idle()})")
    for course in left:
        made = {}
        for how, batch in (("alone", 1), ("together", spec.batch)):
            started = time.perf_counter()
            rung = rung_of(course, spec, context, batch)
            made[how] = time.perf_counter() - started
        found.append({**as_facts(course, rung), "made": made})
        engine = f"{rung.choice.engine} x {rung.choice.lanes}"
        say(f"{course.name}: kept {rung.kept:.3f}, {engine}, {sum(made.values()):.0f} s")
        write_checked(path, {"courses": found})
    return found


def _rows(folder: Path, tasks: Sequence[RecordTask], context: RunContext) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for task in tasks:
        for place, number in enumerate(task.numbers):
            row = row_of(folder, task, place, context)
            assert row is not None
            found.append((number, row))
    return found


def _better(rows: Mapping[tuple[int, int, int], Mapping[str, Any]], count: int) -> list[int]:
    """The better settings by the mean validation loss of the seeds that searches see."""
    losses = np.array([[_last(rows[0, number, seed]) for seed in range(SEARCHED)] for number in range(count)])
    losses = losses.mean(axis=1)
    return sorted(int(each) for each in np.argsort(losses)[: count // BETTER])


def _last(row: Mapping[str, Any]) -> float:
    return float("inf") if row["calibrated"][-1] is None else float(row["calibrated"][-1])


def _shifted(
    name: str,
    courses: Sequence[dict[str, Any]],
    rows: Mapping[tuple[int, int, int], Mapping[str, Any]],
    found: Sequence[Setting],
    spec: Hpo,
    say: Say,
) -> dict[str, Any]:
    """The course whose settings are corrected by what a few pairs of runs say."""
    place = next(number for number, each in enumerate(courses) if each["course"]["name"] == name)
    full, small = (np.array([_last(rows[at, number, 0]) for number in range(len(found))]) for at in (0, place))
    full[PAIRS:] = np.nan
    shift = shift_between(found, small, full, spec.space).factors
    say(f"{name}: settings are corrected by {', '.join(f'{each} x {value:.2g}' for each, value in shift.items())}")
    course = {**courses[place]["course"], "name": f"{name}, shifted", "shift": dict(shift)}
    return {**courses[place], "course": {**course, "seeds": 1}}


def _scaled(name: str, courses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The course whose learning rates are as many times as large as its network is narrower."""
    facts = next(each for each in courses if each["course"]["name"] == name)
    shift = {"learning_rate": facts["rung"]["kept"] ** -0.5}
    return {**facts, "course": {**facts["course"], "name": f"{name}, scaled", "shift": shift, "seeds": 1}}


def _default(spec: Hpo, facts: dict[str, Any], context: RunContext, folder: Path, say: Say) -> dict[str, Any]:
    """The data set's own recipe, trained with every seed."""
    tasks = [RecordTask(facts, (COUNT,), (spec.recipe,), seed, True) for seed in range(SEEDS)]
    record(spec, folder, tasks, os.cpu_count() or 1, say)
    rows = [row for _, row in _rows(folder, tasks, context)]
    return {
        "test_error": [row["test_error"] for row in rows],
        "calibrated": [row["calibrated"][-1] for row in rows],
    }


def _facts(
    spec: Hpo,
    courses: Sequence[dict[str, Any]],
    context: RunContext,
    folder: Path,
    default: dict[str, Any],
    standing: ExistingRows,
) -> dict[str, Any]:
    data: Dataset = context.loaded
    return {
        "spec": read_toml(Path(FILE), "search file", FILE),
        "courses": [{"course": each["course"], "rung": each["rung"]} for each in courses],
        "made": {each["course"]["name"]: each["made"] for each in courses},
        **_seconds(spec, courses, context, folder, standing),
        "asking": standing.facts.get("asking") or _asking(spec),
        "classes": data.classes,
        "whole": list(WHOLE),
        "default": default,
        "environment": environment(),
    }


def _seconds(
    spec: Hpo, courses: Sequence[dict[str, Any]], context: RunContext, folder: Path, standing: ExistingRows
) -> dict[str, Any]:
    """Timed once, when all is recorded and nothing else runs; kept. Moved settings take the seconds of unmoved ones."""
    path, plain = folder / "seconds.json", [each for each in courses if not each["course"]["shift"]]
    kept = standing.seconds([each["course"]["name"] for each in plain]) or _read(path)
    if kept is None:
        beside = idle()  # before this is what runs
        write_checked(path, kept := {"seconds": timed(spec, plain, context), "beside": beside})
    twins = {each["course"]["name"]: _twin(each, plain)["course"]["name"] for each in courses}
    return {"seconds": {name: kept["seconds"][twin] for name, twin in twins.items()}, "beside": kept["beside"]}


def _twin(facts: dict[str, Any], plain: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The course of the same network and epochs whose settings are not moved."""
    same = {"shift": {}, "name": "", "seeds": 1}
    return next(each for each in plain if {**each["course"], **same} == {**facts["course"], **same})


def _asking(spec: Hpo) -> float:
    """Seconds in which TPE draws a setting: the mean of a study."""
    study = optuna.create_study(sampler=load(SAMPLERS, "tpe", "sampler")(0))
    started = time.perf_counter()
    for number in range(spec.trials):
        study.tell(study.ask(distributions(spec.space)), float(number % 7))
    return (time.perf_counter() - started) / spec.trials


def _map(spec: Hpo, folder: Path, out: Path, say: Say) -> dict[str, float]:
    """The map that a search of its own would make; its grid stands beside the recording."""
    from regimes.record.assemble import open_record
    from regimes.record.grid import save_grid

    guide = guide_of(spec, None, folder, 1, "cpu", say)
    assert guide is not None
    save_grid(open_record(guide.name), out / MAP)
    return {"seconds": guide.seconds}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_checked(path)
    except DamagedFile:
        return None


def _sheet(data: Any, facts: Mapping[str, Any]) -> TextTable:
    """What was recorded: networks, engines, seconds."""
    head = ["course", "weights kept", "engine", "in fleets", "alone", "of the full one's", "alone", "made in"]
    rows, tape = [head], SearchTable(data, facts)
    for each in facts["courses"]:
        name, rung = each["course"]["name"], each["rung"]
        took = [f"{tape.mean_seconds(name, together):.2f} s" for together in (True, False)]
        share = [f"{tape.cost(name, together):.2f}" for together in (True, False)]
        engine = f"{rung['choice']['engine']} x {rung['choice']['lanes']}"
        rows.append([name, f"{rung['kept']:.3f}", engine, *took, *share, f"{max(facts['made'][name].values()):.0f} s"])
    notes = [
        f"{data.sizes['setting']} settings, {data.sizes['epoch']} epochs",
        f"seconds: of one network's training in the largest fleet, and alone, the mean of all batch sizes; timed by "
        f"themselves, in the order of the table, five times over ({facts['beside']})",
    ]
    return TextTable("What was recorded", rows, notes, None)
