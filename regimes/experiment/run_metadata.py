"""Metadata of a run: run.json with its numerics and environment, layout.json, and the log of invocations."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

from regimes.errors import UserError
from regimes.experiment.atomic_files import Record
from regimes.experiment.engine_selection import EngineChoice
from regimes.experiment.environment import environment
from regimes.experiment.expand import layout_of
from regimes.experiment.numerics import Numerics
from regimes.experiment.store import Store

if TYPE_CHECKING:
    from regimes.experiment.run import Prepared


def check_numerics(store: Store, numerics: Numerics) -> None:
    """Refuse to continue a run with different numerics.

    Raises:
        UserError: the run started with other numerics; the message names both.
    """
    info = store.run_info
    # If run.json was removed, the records have the id.
    began = Numerics(**info["numerics"]) if info is not None else next(store.numerics(), numerics.id)
    if began not in (numerics, numerics.id):
        raise UserError(
            f"{store.folder}: this run started with {began}, but would continue with {numerics}; results "
            "would not be bitwise equal; pass --allow-mixed to continue anyway, or choose another --out"
        )


def start_run(prepared: Prepared, adopt: bool, mixed: bool) -> Prepared:
    """Write run.json unless another process already did, and layout.json; return the run as it is to be done.

    Args:
        prepared: the prepared run.
        adopt: whether to use the engines in run.json if another process wrote it.
        mixed: whether other numerics than those in run.json are allowed.

    Raises:
        UserError: other numerics, without ``mixed``.
    """
    store, spec = prepared.store, prepared.spec
    store.remove_leftovers()
    if store.run_info is None:
        new = {"numerics": dataclasses.asdict(spec.numerics), **prepared.engine_facts, **environment()}
        store.write_json("run.json", new, keep_existing=True)
    store.write_json(
        "layout.json",
        {**layout_of(prepared.sweep, prepared.stages, prepared.context), "origin": prepared.origin},
    )
    info = store.run_info or {}
    began, engines = Numerics(**info["numerics"]), prepared.engines
    if adopt:
        changed = (began.dense, began.engine) != (spec.numerics.dense, spec.numerics.engine)
        engines = engines_in(info) if changed else engines
        spec = dataclasses.replace(
            spec, numerics=dataclasses.replace(spec.numerics, dense=began.dense, engine=began.engine)
        )
    if not mixed:
        check_numerics(store, spec.numerics)
    return dataclasses.replace(prepared, spec=spec, engines=engines)


def engines_in(info: Record) -> dict[str, EngineChoice]:
    """Return the engines in the content of run.json, with numbers of lanes and reasons."""
    engines = {"train": info["numerics"]["dense"], "retrain": info["numerics"]["engine"]}
    lanes, said = info.get("lanes", {}), info.get("engines", {})  # not in files of earlier versions
    return {
        kind: EngineChoice(engine, lanes.get(kind, 0), said.get(kind, {}).get("reason", "as the run began"))
        for kind, engine in engines.items()
    }


def log(store: Store, seconds: float, stages: int) -> None:
    """Append the wall time of an invocation, and the number of stages that it did itself, to log.jsonl, as one short
    line."""
    when = time.strftime("%Y-%m-%d %H:%M")
    line = json.dumps({"finished": when, "seconds": round(seconds, 1), "stages": stages})
    with open(store.folder / "log.jsonl", "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
