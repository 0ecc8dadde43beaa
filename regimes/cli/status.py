"""``regimes status``: the progress of a run, from its files alone."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.formatting import STAGE_NOUNS, echo_problems, stage_name
from regimes.cli.options import Json, Run


@report_user_errors
def status(run: Run, as_json: Json = False) -> None:
    """Show the progress of a run: stages done, pending or failed with their errors, damaged files."""
    from regimes.experiment.atomic_files import DamagedFile
    from regimes.experiment.claims import owners
    from regimes.experiment.store import open_store
    from regimes.plots.run_info import engine_line

    store = open_store(run)
    layout = store.layout
    info: dict[str, Any] = {}
    with contextlib.suppress(DamagedFile):  # `regimes run` says so
        info = store.read_json("run.json") or {}
    states: dict[str, Counter[str]] = {kind: Counter() for kind in STAGE_NOUNS}
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
            failed[stage_name(stage["kind"], stage["at"])] = failure["error"]
        states[stage["kind"]][state] += 1
    working = owners(run)
    states = {kind: counts for kind, counts in states.items() if counts}
    if as_json:
        facts = {"name": layout["name"], "stages": states, "failed": failed, "damaged": damaged}
        facts["working"] = [vars(owner) for owner in working]
        facts |= {name: info[name] for name in ("engines", "lanes") if name in info}
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{layout['name']} in {run}")
    if engines := engine_line(info):
        typer.echo(f"  engines: {engines}")
    for kind, counts in states.items():
        typer.echo(f"  {kind:<8} " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    for owner in working:
        typer.echo(f"  working on it: {owner}, {owner.workers} workers")
    echo_problems(failed, damaged)
    if failed:
        typer.echo(f"  retry them with: regimes run {run} --retry-failed")
