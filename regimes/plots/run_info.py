"""Information about a run for its report: sweep, numerics, hardware, versions and hours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regimes.experiment.atomic_files import DamagedFile, read_stored
from regimes.experiment.store import open_store, reads_run
from regimes.regime_map import ROUNDS_FILE


@reads_run
def run_facts(run: str | Path) -> dict[str, Any]:
    """Return information about a run, read from its folder.

    Keys: ``name``, ``sweep`` (with all defaults), ``file``, ``folder``, ``numerics``, ``lanes``, ``engines``,
    ``processor``, ``cores``, ``versions``, ``python``, ``system``; ``stages`` {kind: [number, core-hours]},
    ``wall_hours`` over all commands.

    Raises:
        UserError: there is no run in the folder, or its files cannot be read.
    """
    store = open_store(run)
    head, layout = store.run_info or {}, store.layout
    stages: dict[str, list[float]] = {}
    for stage in layout["stages"]:
        try:
            record = store.read(stage["key"])
        except DamagedFile:
            continue
        if record is not None:
            entry = stages.setdefault(stage["kind"], [0, 0.0])
            entry[0] += 1
            entry[1] += record["seconds"] / 3600
    log = store.folder / "log.jsonl"
    lines = (read_stored(log) or b"").decode(errors="replace").splitlines()
    wall = sum(_seconds(line) for line in lines) / 3600
    about = {
        "name": layout["name"],
        "sweep": layout["sweep"],
        "file": layout["origin"]["file"] + (" --adaptive" if (store.folder / ROUNDS_FILE).exists() else ""),
        "folder": str(run),
        "stages": stages,
        "wall_hours": wall,
    }
    engine_line(head)  # raises if it cannot be shown
    return {**head, **{name: dict(head.get(name, {})) for name in ("numerics", "versions")}, **about}


def engine_line(facts: Mapping[str, Any]) -> str:
    """Return the engines of a run with their reasons in one line; "" for runs of earlier versions.

    Args:
        facts: ``engines`` and ``lanes`` as in run.json.
    """
    said: dict[str, list[str]] = {}
    for kind, each in sorted(facts.get("engines", {}).items(), reverse=True):  # training first
        lanes = facts["lanes"][kind]
        at_once = f", {lanes} networks at once" if lanes > 1 else ""
        said.setdefault(f"{each['engine']}{at_once} ({each['reason']})", []).append(kind)
    return "; ".join(f"{' and '.join(kinds)} {text}" for text, kinds in said.items())


def _seconds(line: str) -> float:
    try:
        return float(json.loads(line)["seconds"])
    except (ValueError, KeyError, TypeError):
        return 0.0  # a line cut short by a kill
