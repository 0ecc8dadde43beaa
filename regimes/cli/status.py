"""``regimes status``: the progress of a run, from its files alone."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.formatting import STAGE_NOUNS, echo_problems, stage_name
from regimes.cli.options import Json, Run
from regimes.errors import printable


@report_user_errors
def status(run: Run, as_json: Json = False) -> None:
    """Show the progress of a run: stages done, pending or failed with their errors, damaged files."""
    from regimes.experiment.store import reads_run
    from regimes.plots.run_info import engine_line

    facts, info = reads_run(_read)(run)
    if as_json:
        facts |= {name: info[name] for name in ("engines", "lanes") if name in info}
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(printable(f"{facts['name']} in {run}"))
    if engines := engine_line(info):
        typer.echo(printable(f"  engines: {engines}"))
    for kind, counts in facts["stages"].items():
        typer.echo(f"  {kind:<8} " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    for owner in facts["working"]:
        typer.echo(printable("  working on it: {host}, process {pid}, workers: {workers}".format(**owner)))
    echo_problems(facts["failed"], facts["damaged"])
    if facts["failed"]:
        typer.echo(f"  retry them with: regimes run {run} --retry-failed")


def _read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the progress of a run for JSON, and the content of its run.json."""
    from regimes.experiment.atomic_files import DamagedFile
    from regimes.experiment.claims import owners
    from regimes.experiment.store import open_store
    from regimes.plots.run_info import engine_line

    store = open_store(run)
    layout = store.layout
    info: dict[str, Any] = {}
    with contextlib.suppress(DamagedFile):  # `regimes run` says so
        info = store.read_json("run.json") or {}
    engine_line(info)  # raises if it cannot be shown
    states: dict[str, Counter[str]] = {kind: Counter() for kind in STAGE_NOUNS}
    failed: dict[str, str] = {}
    damaged: list[str] = []
    for stage in layout["stages"]:
        state = "pending"
        try:
            record = store.read(stage["key"])
            if record is not None:
                state = str(record["status"])
                store.check_weights(stage["key"], record)
        except DamagedFile as error:
            damaged.append(str(error))
            state = "damaged"
        failure = store.failure(stage["key"]) if state == "pending" else None
        if failure is not None:
            state = "failed"
            failed[stage_name(stage["kind"], stage["at"])] = str(failure["error"])
        states[stage["kind"]][printable(state)] += 1
    stages = {kind: counts for kind, counts in states.items() if counts}
    working = [vars(owner) for owner in owners(run)]
    return {"name": layout["name"], "stages": stages, "failed": failed, "damaged": damaged, "working": working}, info
