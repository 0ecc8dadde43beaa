"""``regimes plan``: what a sweep would do, and at what cost."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.formatting import STAGE_NOUNS, duration, echo_problems, size, stage_name
from regimes.cli.options import Devices, Engine, Json, Lanes, Out, Precision, Set, SweepFile, Workers


@report_user_errors
def plan(
    sweep: SweepFile,
    out: Out = None,
    workers: Workers = None,
    device: Devices = "cpu",
    engine: Engine = None,
    precision: Precision = None,
    lanes: Lanes = None,
    changes: Set = [],  # noqa: B006 - typer's way to declare an empty default
    as_json: Json = False,
) -> None:
    """Show what a sweep would do: cells, trainings, what is done already, expected time, disk space and memory."""
    from regimes.experiment.cost_estimate import estimate
    from regimes.experiment.devices import devices_of
    from regimes.experiment.environment import default_workers
    from regimes.experiment.run import prepare

    workers = default_workers(devices_of(device)) if workers is None else max(1, workers)
    prepared = prepare(sweep, out, device, engine, False, precision, workers, changes, lanes)
    facts = _facts(prepared, estimate(prepared, workers), workers)
    typer.echo(json.dumps(facts, indent=1)) if as_json else _print(facts, prepared)


def _facts(prepared: Any, cost: Any, workers: int) -> dict[str, Any]:
    from regimes.experiment.expand import coverages

    progress, stages = prepared.progress, prepared.stages
    todo = Counter(stage.kind for stage in progress.todo)
    count = Counter(stage.kind for stage in stages)
    done = Counter(stage.kind for stage in stages if stage.key in progress.done)
    errors = progress.failed
    failed = {stage_name(stage.kind, stage.coords): errors[stage.key] for stage in stages if stage.key in errors}
    return {
        "name": prepared.sweep.name,
        "folder": str(prepared.store.folder),
        "data": prepared.context.loaded.title,
        "cells": sum(stage.kind in ("prune", "discover") and not stage.intermediate for stage in stages),
        "dense_trainings": len({stage.training for stage in stages if stage.kind == "train"}),
        "decay_product": _decay_product(prepared),
        "coverage": [{**size, **each.as_dict()} for size, each in coverages(prepared.sweep, prepared.context)],
        "stages": {kind: {"all": count[kind], "done": done[kind], "todo": todo[kind]} for kind in STAGE_NOUNS},
        "done": len(progress.done),
        "failed": failed,
        "blocked": len(progress.blocked),
        "damaged": list(progress.damaged.values()),
        "core_seconds": round(cost.core_seconds, 1),
        "workers": workers,
        "wall_seconds": round(cost.wall_seconds(workers), 1) if progress.todo else 0.0,
        "disk_bytes": cost.disk_bytes,
        "memory_bytes_per_worker": cost.memory_bytes,
        **prepared.engine_facts,
        "estimate": cost.source,
        "numerics": str(prepared.spec.numerics),
    }


def _decay_product(prepared: Any) -> list[float]:
    """Smallest and largest learning rate x weight decay x steps before the first decay; empty without training."""
    from regimes.training.schedule import TrainingSchedule

    sweep, images = prepared.sweep, len(prepared.context.loaded.train.targets)
    if sweep.dense:
        return []
    schedules = [TrainingSchedule(sweep.dense_recipe(each), images) for each in sweep.temperatures()]
    if sweep.recipe.optimizer == "adam":  # its weight decay is a gradient, which it normalises
        return []
    products = [each.rate_before_decay * each.recipe.weight_decay for each in schedules]
    return [min(products), max(products)]


def _print(facts: dict[str, Any], prepared: Any) -> None:
    from regimes.experiment.memory import free_bytes
    from regimes.plots.run_info import engine_line

    typer.echo(f"{facts['name']} -> {facts['folder']}   ({facts['data']})")
    typer.echo(f"  cells (temperature x load x dense seed)     {facts['cells']}")
    typer.echo(f"  distinct dense trainings                    {facts['dense_trainings']}")
    if facts["decay_product"]:
        values = " to ".join(dict.fromkeys(f"{each:.2g}" for each in facts["decay_product"]))
        typer.echo(f"  learning rate x weight decay x steps before the first decay: {values}")
    for each in facts["coverage"]:
        where = f" at width {each['width']}" if "width" in each else ""
        typer.echo(f"  prunable{where}: {each['text']}")
    for kind, noun in STAGE_NOUNS.items():
        count = facts["stages"][kind]
        if count["all"] or kind in ("retrain", "measure"):
            typer.echo(f"  {kind:<8} {count['all']:>6} {noun:<17} done {count['done']:>6}   to do {count['todo']:>6}")
    echo_problems(facts["failed"], facts["damaged"], facts["blocked"])
    workers, memory = facts["workers"], facts["memory_bytes_per_worker"]
    typer.echo(
        f"  expected: {duration(facts['wall_seconds'])} with {workers} worker{'s' * (workers != 1)} "
        f"({duration(facts['core_seconds'])} of one core, {facts['estimate']}), {size(facts['disk_bytes'])} on disk, "
        f"{size(memory)} of memory per worker"
    )
    free = free_bytes(prepared.context.device)
    if prepared.context.device.type == "cpu" and memory * workers > free:
        fits = max(1, free // memory)
        typer.echo(f"  that exceeds the free memory ({size(free)}): use --workers {fits} or a smaller batch size")
    typer.echo(f"  numerics: {facts['numerics']}")
    typer.echo(f"  engines: {engine_line(facts)}")
