"""What the commands that look, label and draw print."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from regimes.errors import UserError

WHAT = {
    "train": "snapshots",
    "given": "checkpoints",
    "prune": "masks",
    "discover": "discovered networks",
    "retrain": "retrained copies",
    "measure": "measurements",
}
KINDS = tuple(WHAT)


def show_plan(
    sweep: Path,
    out: Path | None,
    workers: int | None,
    device: str,
    engine: str | None,
    precision: str | None,
    changes: list[str],
    as_json: bool,
) -> None:
    """Print what a sweep would do."""
    from regimes.experiment.cost_estimate import estimate
    from regimes.experiment.memory import free_bytes
    from regimes.experiment.prepare import prepare
    from regimes.experiment.run_metadata import default_workers

    workers = default_workers(device) if workers is None else max(1, workers)
    prepared = prepare(sweep, out, device, engine, precision=precision, workers=workers, changes=changes)
    progress, stages = prepared.progress, prepared.stages
    todo = Counter(stage.kind for stage in progress.todo)
    count = Counter(stage.kind for stage in stages)
    done = Counter(stage.kind for stage in stages if stage.key in progress.done)
    failed = {
        place(stage.kind, stage.at): progress.failed[stage.key] for stage in stages if stage.key in progress.failed
    }
    cost = estimate(prepared, workers)
    trainings = {stage.training for stage in stages if stage.kind == "train"}  # type: ignore[attr-defined]
    facts: dict[str, Any] = {
        "name": prepared.sweep.name,
        "folder": str(prepared.store.folder),
        "data": prepared.context.loaded.title,
        "cells": sum(stage.kind in ("prune", "discover") and not stage.aside for stage in stages),
        "dense_trainings": len(trainings),
        "stages": {kind: {"all": count[kind], "done": done[kind], "todo": todo[kind]} for kind in KINDS},
        "done": len(progress.done),
        "failed": failed,
        "blocked": len(progress.blocked),
        "damaged": list(progress.damaged.values()),
        "core_seconds": round(cost.core_seconds, 1),
        "workers": workers,
        "wall_seconds": round(cost.wall_seconds(workers), 1) if progress.todo else 0.0,
        "disk_bytes": cost.disk_bytes,
        "memory_bytes_per_worker": cost.memory_bytes,
        "lanes": prepared.lanes,
        "estimate": cost.source,
        "numerics": str(prepared.spec.numerics),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{facts['name']} -> {facts['folder']}   ({facts['data']})")
    typer.echo(f"  cells (temperature x load x dense seed)     {facts['cells']}")
    typer.echo(f"  distinct dense trainings                    {facts['dense_trainings']}")
    for kind in KINDS:
        if not count[kind] and kind in ("train", "given", "prune", "discover"):
            continue
        what = WHAT[kind]
        typer.echo(f"  {kind:<8} {count[kind]:>6} {what:<17} done {done[kind]:>6}   to do {todo[kind]:>6}")
    _say_trouble(facts)
    typer.echo(
        f"  expected: {duration(facts['wall_seconds'])} with {workers} worker{'s' * (workers != 1)} "
        f"({duration(cost.core_seconds)} of one core, {cost.source}), {size(cost.disk_bytes)} on disk, "
        f"{size(cost.memory_bytes)} of memory a worker"
    )
    free = free_bytes(prepared.context.device)
    if prepared.context.device.type == "cpu" and cost.memory_bytes * workers > free:
        fits = max(1, free // cost.memory_bytes)
        typer.echo(
            f"  that is more memory than is free here ({size(free)}): take --workers {fits} or a smaller batch size"
        )
    together = "; ".join(f"{kind} {count} at once" for kind, count in prepared.lanes.items())
    typer.echo(f"  numerics: {facts['numerics']}; {together}")


def show_status(run: Path, as_json: bool) -> None:
    """Print how far a run is, from its files alone."""
    from regimes.experiment.atomic_files import DamagedFile
    from regimes.experiment.store import open_store

    store = open_store(run)
    layout, _ = store.layout, store.head
    states: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    failed: dict[str, str] = {}
    damaged: list[str] = []
    for stage in layout["stages"]:
        state = "pending"
        try:
            record = store.read(stage["key"])
            if record is not None:
                state = record["status"]
                store.check_weights(stage["key"], record)
        except DamagedFile as error:
            damaged.append(str(error))
            state = "damaged"
        failure = store.failure(stage["key"]) if state == "pending" else None
        if failure is not None:
            state = "failed"
            failed[place(stage["kind"], stage["at"])] = failure["error"]
        states[stage["kind"]][state] += 1
    states = {kind: counts for kind, counts in states.items() if counts}
    if as_json:
        facts = {"name": layout["name"], "stages": states, "failed": failed, "damaged": damaged}
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{layout['name']} in {run}")
    for kind, counts in states.items():
        typer.echo(f"  {kind:<8} " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    _say_trouble({"failed": failed, "damaged": damaged, "blocked": 0})
    if failed:
        typer.echo(f"  do them again with: regimes retry {run}")


def show_clean(run: Path) -> None:
    """Remove weights that nothing needs and print what was freed."""
    from regimes.experiment.clean import clean
    from regimes.experiment.prepare import prepare

    prepared = prepare(None, run, mixed=True)
    files, freed = clean(prepared.stages, prepared.progress, prepared.store)
    typer.echo(f"{run}: removed {files} weight files, {size(freed)}")


def show_export(grid: Path, form: str, out: Path | None) -> None:
    """Write a record as one file and say where."""
    from regimes.record.assemble import open_record
    from regimes.record.export import export
    from regimes.record.grid import load_netcdf

    data = open_record(grid) if grid.is_dir() else load_netcdf(grid)
    file = out or Path(f"{grid.resolve().name if grid.is_dir() else grid.stem}.{form}")
    if file.resolve() == grid.resolve():
        raise UserError(f"{file}: would be written over what is exported; name another file with --out")
    export(data, file, form)
    typer.echo(f"wrote {file}")


def show_classify(grid: Path, out: Path, rule: str, lmc: float | None, cka: float | None) -> None:
    """Write a classified grid and print its thresholds and regimes."""
    from regimes.record.grid import read_grid, save_grid
    from regimes.regime_map.classify import classify

    data = classify(read_grid(grid), rule, lmc, cka)
    save_grid(data, out)
    _say_regimes(data)
    typer.echo(f"wrote {out}")


def show_map(grid: Path, out: Path | None, rule: str, lmc: float | None, cka: float | None, mark: list[str]) -> None:
    """Draw a grid and print where the pictures are."""
    from regimes.cli.answer import positions
    from regimes.plots.draw_map import draw_map
    from regimes.plots.run_info import run_facts
    from regimes.record.grid import read_grid, save_grid
    from regimes.regime_map.classify import classify

    data = classify(read_grid(grid), rule, lmc, cka)
    folder = out or (grid / "map" if grid.is_dir() else grid.with_suffix("").with_name(f"{grid.stem}-map"))
    files = draw_map(data, folder, run_facts(grid) if grid.is_dir() else None, positions(mark, "--mark"))
    save_grid(data, folder / "grid.nc")
    _say_regimes(data)
    typer.echo(f"wrote {len(files) + 1} files; look at {folder / 'phase.png'} and {files[-1]}")


def show_page(grid: Path, out: Path | None, rule: str, lmc: float | None, cka: float | None) -> None:
    """Write a grid as an HTML page and say where."""
    from regimes.plots.html_page import write_page
    from regimes.record.grid import read_grid
    from regimes.regime_map.classify import classify

    data = classify(read_grid(grid), rule, lmc, cka)
    file = write_page(data, out or (grid / "page.html" if grid.is_dir() else grid.with_suffix(".html")))
    typer.echo(f"wrote {file} ({size(file.stat().st_size)}); open it in a browser")


def _say_regimes(data: Any) -> None:
    from regimes.regime_map.classify import present

    for note in data["regime"].attrs["thresholds"].split("; "):
        typer.echo(note)
    seen = ", ".join(f"{name}: {count} cells" if count else f"{name}: absent" for name, count in present(data).items())
    unknown = int((data["regime"] == -1).sum())
    typer.echo(seen + (f", unknown: {unknown}" if unknown else ""))


def _say_trouble(facts: dict[str, Any]) -> None:
    for key, error in list(facts["failed"].items())[:10]:
        typer.echo(f"  failed   {key}: {error}")
    if len(facts["failed"]) > 10:
        typer.echo(f"  ... and {len(facts['failed']) - 10} more")
    if facts["blocked"]:
        typer.echo(f"  {facts['blocked']} stages wait for a failed one")
    for line in facts["damaged"]:
        typer.echo(f"  damaged  {line}; will be done again")


def place(kind: str, at: Mapping[str, Any]) -> str:
    """A stage by its place in the grid, e.g. "retrain epochs=40 density=0.05 dense_seed=0"."""
    return " ".join([kind, *(f"{name}={value:g}" for name, value in at.items())])


def duration(seconds: float) -> str:
    """Seconds in words of a useful size."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 3 * 86_400 else f"{seconds / 86_400:,.0f} days"


def size(count: int) -> str:
    """Bytes in words of a useful size."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
