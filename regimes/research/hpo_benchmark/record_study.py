"""Record the table of full networks that searches are replayed on; study ``recording``: that of digits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regimes.config.hpo import INTEGERS, Hpo
from regimes.config.hpo_file import read_hpo
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import read_toml
from regimes.data.dataset import Dataset
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.context import RunContext
from regimes.experiment.environment import environment
from regimes.hpo.plan import context_of, guidance_of
from regimes.plots.text_table import TextTable
from regimes.research.hpo_benchmark.fidelities import (
    FULL,
    SEARCHED,
    RecordedFidelity,
    as_facts,
    build_fidelity,
    from_facts,
)
from regimes.research.hpo_benchmark.methods import PAIRS
from regimes.research.hpo_benchmark.optimum_shift import shift_between
from regimes.research.hpo_benchmark.record import (
    ExistingRows,
    RecordTask,
    Setting,
    recipes_of,
    record,
    row_of,
    settings,
    tasks_of,
)
from regimes.research.hpo_benchmark.recordings import BEST_SHARE, DIGITS, Recording
from regimes.research.hpo_benchmark.table import SEEDS, SearchTable, assemble, fidelities_of, write_table
from regimes.research.hpo_benchmark.timing import machine_load, seconds_of_asking, time_fidelities
from regimes.research.page import Page, Say

RECORDING, MAP = "recording.nc", "map.nc"
AGAIN = (
    "The same command resumes an interrupted recording and adds new fidelities; recorded trainings are not repeated. "
    "The minutes above are those of the last command."
)


def study(out: Path, runs: Path, say: Say) -> Page:
    """Make the recording of digits, or complete it."""
    return record_full(DIGITS, out, runs, say)


def record_full(recording: Recording, out: Path, runs: Path, say: Say) -> Page:
    """Make the table of full networks of a recording, or complete it; return its page."""
    spec = read_hpo(recording.file)
    folder = runs / ("recording" if recording == DIGITS else f"full-{recording.name}")
    context = context_of(spec, "cpu", folder)
    found = settings(spec.space, recording.settings)
    existing = ExistingRows.of(out / RECORDING, found)
    fidelities = _built_fidelities(recording.fidelities, spec, context, folder, existing, say)
    recipes = recipes_of(spec, found)
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}

    def do(place: int, members: Sequence[tuple[int, Recipe]], seed: int) -> None:
        fidelity, built = from_facts(fidelities[place], context, spec.recipe)
        known = existing.rows(fidelity, [number for number, _ in members], seed)
        if known is not None:
            rows.update({(place, number, seed): row for number, row in known.items()})
            return
        say(f"{fidelity.name}, seed {seed}: {len(members)} settings")
        tasks = list(tasks_of(fidelity, built, fidelities[place], members, seed))
        record(spec, folder, tasks, os.cpu_count() or 1, say)
        rows.update({(place, number, seed): row for number, row in _rows(folder, tasks, context)})

    for place, facts in enumerate(fidelities):
        for seed in range(facts["course"]["seeds"]):
            do(place, recipes, seed)
    better = _better(rows, len(found))
    for seed in range(SEARCHED, SEEDS):
        do(0, [recipes[number] for number in better], seed)
    shifted = [
        existing.shifted(name) or _shifted(name, fidelities, rows, found, spec, say) for name in recording.shifted
    ]
    shifted += [_scaled(name, fidelities) for name in recording.scaled]
    for facts in shifted:
        fidelities.append(facts)
        do(len(fidelities) - 1, recipes, 0)
    default = existing.facts.get("default") or _default(spec, len(found), fidelities[0], context, folder, say)
    facts = _facts(recording, spec, fidelities, context, folder, default, existing)
    data = assemble([each["course"]["name"] for each in fidelities], found, rows, spec.recipe.epochs, facts)
    write_table(data, out / RECORDING)
    if recording.has_map:
        facts["map"] = existing.facts.get("map") or _map(spec, folder, out, say)
        data.attrs["facts"] = json.dumps(facts, sort_keys=True)
        write_table(data, out / RECORDING)
    title = f"A recording of searches on {recording.title}"
    paragraphs = [_in_words(recording, spec), _cost_in_words(recording, SearchTable(data, facts)), AGAIN]
    return Page("recording", title, paragraphs, [_table(data, facts)], facts=facts)


def _in_words(recording: Recording, spec: Hpo) -> str:
    """Description of the recorded settings and fidelities."""
    return (
        f"`{recording.file}`: {recording.settings} settings of {', '.join(spec.space).replace('_', ' ')} that fill the "
        "space evenly, each trained with two seeds on the full network (the better quarter with four) and on the "
        "cheaper fidelities below; recorded are the validation loss after every epoch, the final test error of the "
        "full network, and measured seconds. `python -m regimes.research hpo_benchmark compare "
        f"{recording.name}` replays searches on it."
    )


def _cost_in_words(recording: Recording, table: SearchTable) -> str:
    """The arithmetic of the processor time of the full network and of the other fidelities."""
    count, alone = len(table.settings), table.mean_seconds(FULL, together=False)
    trainings = count * SEARCHED + count // BEST_SHARE * (SEEDS - SEARCHED)
    others = [each for each in fidelities_of(table.facts) if each.name != FULL]
    rest = sum(count * each.seeds * table.mean_seconds(each.name) for each in others)
    total = (trainings * alone + rest) / 60
    return (
        f"Processor time: {trainings} trainings of the full network x {alone:.1f} s + {rest / 60:.0f} minutes of the "
        f"other fidelities = {total:.0f} core-minutes, {total / 2:.0f} minutes on two cores, without validation."
    )


def _built_fidelities(
    wanted: Sequence[RecordedFidelity], spec: Hpo, context: RunContext, folder: Path, existing: ExistingRows, say: Say
) -> list[dict[str, Any]]:
    """All fidelities with their networks, built and timed; saved, so that another command can resume."""
    path = folder / "courses.json"
    found = list((_read(path) or {"courses": existing.fidelities})["courses"])
    left = [fidelity for fidelity in wanted if fidelity.name not in [each["course"]["name"] for each in found]]
    if left:
        say(f"building and timing fidelities; nothing else should run on this machine ({machine_load()})")
    for fidelity in left:
        made = {}
        for how, batch in (("alone", 1), ("together", spec.batch)):
            started = time.perf_counter()
            built = build_fidelity(fidelity, spec, context, batch)
            made[how] = time.perf_counter() - started
        found.append({**as_facts(fidelity, built), "made": made})
        engine = f"{built.choice.engine} x {built.choice.lanes}"
        say(f"{fidelity.name}: kept {built.kept:.3f}, {engine}, {sum(made.values()):.0f} s")
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
    """The best settings by the mean validation loss over the seeds that searches see."""
    losses = np.array([[_last(rows[0, number, seed]) for seed in range(SEARCHED)] for number in range(count)])
    losses = losses.mean(axis=1)
    return sorted(int(each) for each in np.argsort(losses)[: count // BEST_SHARE])


def _last(row: Mapping[str, Any]) -> float:
    return float("inf") if row["calibrated"][-1] is None else float(row["calibrated"][-1])


def _shifted(
    name: str,
    fidelities: Sequence[dict[str, Any]],
    rows: Mapping[tuple[int, int, int], Mapping[str, Any]],
    found: Sequence[Setting],
    spec: Hpo,
    say: Say,
) -> dict[str, Any]:
    """The fidelity with settings shifted by factors estimated from a few pairs of trainings."""
    place = next(number for number, each in enumerate(fidelities) if each["course"]["name"] == name)
    full, small = (np.array([_last(rows[at, number, 0]) for number in range(len(found))]) for at in (0, place))
    full[PAIRS:] = np.nan
    shift = shift_between(found, small, full, spec.space).factors
    say(f"{name}: settings shifted by {', '.join(f'{each} x {value:.2g}' for each, value in shift.items())}")
    fidelity = {**fidelities[place]["course"], "name": f"{name}, shifted", "shift": dict(shift)}
    return {**fidelities[place], "course": {**fidelity, "seeds": 1}}


def _scaled(name: str, fidelities: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fidelity with learning rates scaled in inverse proportion to the width of its network."""
    facts = next(each for each in fidelities if each["course"]["name"] == name)
    shift = {"learning_rate": facts["rung"]["kept"] ** -0.5}
    return {**facts, "course": {**facts["course"], "name": f"{name}, scaled", "shift": shift, "seeds": 1}}


def _default(
    spec: Hpo, number: int, facts: dict[str, Any], context: RunContext, folder: Path, say: Say
) -> dict[str, Any]:
    """Results of the search file's own recipe, recorded under a number of its own, with every seed."""
    tasks = [RecordTask(facts, (number,), (spec.recipe,), seed, True) for seed in range(SEEDS)]
    record(spec, folder, tasks, os.cpu_count() or 1, say)
    rows = [row for _, row in _rows(folder, tasks, context)]
    return {
        "test_error": [row["test_error"] for row in rows],
        "calibrated": [row["calibrated"][-1] for row in rows],
    }


def _facts(
    recording: Recording,
    spec: Hpo,
    fidelities: Sequence[dict[str, Any]],
    context: RunContext,
    folder: Path,
    default: dict[str, Any],
    existing: ExistingRows,
) -> dict[str, Any]:
    data: Dataset = context.loaded
    return {
        "spec": read_toml(Path(recording.file), "search file", recording.file),
        "courses": [{"course": each["course"], "rung": each["rung"]} for each in fidelities],
        "made": {each["course"]["name"]: each["made"] for each in fidelities},
        **_seconds(spec, fidelities, context, folder, existing),
        "asking": existing.facts.get("asking") or seconds_of_asking(spec),
        "classes": data.classes,
        "whole": list(INTEGERS),
        "default": default,
        "environment": environment(),
    }


def _seconds(
    spec: Hpo, fidelities: Sequence[dict[str, Any]], context: RunContext, folder: Path, existing: ExistingRows
) -> dict[str, Any]:
    """Seconds of all fidelities, timed once after recording; shifted fidelities share those of unshifted ones."""
    path, plain = folder / "seconds.json", [each for each in fidelities if not each["course"]["shift"]]
    kept = existing.seconds([each["course"]["name"] for each in plain]) or _read(path)
    if kept is None:
        beside = machine_load()  # before the timing itself adds to it
        write_checked(path, kept := {"seconds": time_fidelities(spec, plain, context), "beside": beside})
    twins = {each["course"]["name"]: _twin(each, plain)["course"]["name"] for each in fidelities}
    return {"seconds": {name: kept["seconds"][twin] for name, twin in twins.items()}, "beside": kept["beside"]}


def _twin(facts: dict[str, Any], plain: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fidelity with the same network and epochs and unshifted settings."""
    same = {"shift": {}, "name": "", "seeds": 1}
    return next(each for each in plain if {**each["course"], **same} == {**facts["course"], **same})


def _map(spec: Hpo, folder: Path, out: Path, say: Say) -> dict[str, float]:
    """Make the map that a search would make and save its grid next to the recording."""
    from regimes.record.assemble import open_record
    from regimes.record.grid import save_grid

    guide = guidance_of(spec, None, folder, 1, "cpu", say)
    assert guide is not None
    save_grid(open_record(guide.name), out / MAP)
    return {"seconds": guide.seconds}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_checked(path)
    except DamagedFile:
        return None


def _table(data: Any, facts: Mapping[str, Any]) -> TextTable:
    """Networks, engines and seconds of all fidelities."""
    head = ["fidelity", "weights kept", "engine", "in fleets", "alone", "share of full", "alone", "built in"]
    rows, table = [head], SearchTable(data, facts)
    for each in facts["courses"]:
        name, built = each["course"]["name"], each["rung"]
        took = [f"{table.mean_seconds(name, together):.2f} s" for together in (True, False)]
        share = [f"{table.cost(name, together):.2f}" for together in (True, False)]
        engine = f"{built['choice']['engine']} x {built['choice']['lanes']}"
        rows.append([name, f"{built['kept']:.3f}", engine, *took, *share, f"{max(facts['made'][name].values()):.0f} s"])
    notes = [
        f"{data.sizes['setting']} settings, {data.sizes['epoch']} epochs",
        "seconds: one network's training in the largest fleet, and alone, averaged over batch sizes; timed "
        f"separately, in the order of the table, five times ({facts['beside']})",
    ]
    return TextTable("Recorded fidelities", rows, notes, None)
