"""Read a search file and name all its mistakes at once, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regimes.config.hpo import TUNABLE, WHOLE, Dimension, Hpo, LadderSpec, MapSpec, StudySpec
from regimes.config.overrides import changed
from regimes.config.recipe import Recipe
from regimes.config.sweep_file import SweepChecker, read_toml
from regimes.data import DATASETS
from regimes.errors import UserError
from regimes.hpo import PROXIES, SAMPLERS, STOPPERS
from regimes.models import GIVEN, MODELS
from regimes.registry import nearest

TABLES = ("data", "model", "recipe", "space", "ladder", "study", "map")
PLAIN = ("name", "trials", "batch", "seed", "final_seeds")
REQUIRED = ("data", "model", "space")


def read_hpo(path: str | Path, changes: Iterable[str] = ()) -> Hpo:
    """Return the search a TOML file describes, with all defaults filled in; some keys may be set anew.

    Raises:
        UserError: one line for each mistake in the file.
    """
    path = Path(path)
    raw = changed(read_toml(path, "search file", "sweeps/digits-hpo.toml"), changes)
    return resolve_hpo(raw, str(path), path.stem)


def resolve_hpo(raw: Mapping[str, Any], source: str = "search", default_name: str = "search") -> Hpo:
    """Return the search that a parsed TOML file (a plain dict) describes; see `read_hpo`."""
    checker = SweepChecker(source)
    checker.names(raw, (*PLAIN, *TABLES))
    raw = checker.tables(raw, TABLES, REQUIRED, "a search")
    found: dict[str, Any] = {
        "data": checker.named("data", raw, DATASETS, "data set", given=()),
        "model": checker.named("model", raw, MODELS, "model", given=GIVEN),
        "ladder": checker.table(LadderSpec, "ladder", raw.get("ladder", {})),
        "study": checker.table(StudySpec, "study", raw.get("study", {})),
        "map": checker.table(MapSpec, "map", raw.get("map", {})),
    }
    found["recipe"] = checker.recipe(raw, found["data"])
    found["space"] = _space(checker, raw.get("space", {}), found["recipe"]) if "space" in raw else None
    for key, name, registry, what in (
        ("ladder.proxy", getattr(found["ladder"], "proxy", None), PROXIES, "proxy"),
        ("study.sampler", getattr(found["study"], "sampler", None), SAMPLERS, "sampler"),
        ("study.stopper", getattr(found["study"], "stopper", None), STOPPERS, "stopper"),
    ):
        if name is not None:
            checker.known(key, name, registry, what)
    if found["ladder"] is not None:
        _ladder(checker, found["ladder"])
    UserError.collect(checker.mistakes)
    rest = {"name": raw.get("name", default_name), **{key: raw[key] for key in PLAIN[1:] if key in raw}}
    try:
        return Hpo(**found, **rest)
    except ValidationError as error:
        raise UserError(
            *(f"{source}: {each['loc'][0]}: {each['msg']}, got {each['input']!r}" for each in error.errors())
        ) from error


def _ladder(checker: SweepChecker, ladder: LadderSpec) -> None:
    if ladder.densities is not None and ladder.step_time is not None:
        checker.say("ladder.step_time", "the levels are given by densities already; leave one of the two out")
    for name in ("densities", "step_time", "reports", "proxy_reports"):
        values = getattr(ladder, name) or ()
        if len(set(values)) != len(values):
            checker.say(f"ladder.{name}", f"a value stands there twice: {list(values)}")


def _space(checker: SweepChecker, table: Mapping[str, Any], recipe: Recipe | None) -> dict[str, Dimension] | None:
    if not table:
        checker.say("space", f"needs at least one hyperparameter; allowed: {', '.join(TUNABLE)}")
    found = {}
    for name, given in table.items():
        key = f"space.{name}"
        if name not in TUNABLE:
            checker.say(key, f"unknown hyperparameter{nearest(name, TUNABLE)}; allowed: {', '.join(TUNABLE)}")
            continue
        as_floats = [float(each) if type(each) is int else each for each in given] if isinstance(given, list) else given
        if isinstance(as_floats, Mapping):
            as_floats = {k: float(v) if type(v) is int else v for k, v in as_floats.items()}
        dimension: Dimension | None = checker.table(Dimension, key, as_floats)
        if dimension is None:
            continue
        found[name] = dimension
        if recipe is None:
            continue
        for value in dimension.choices or dimension.ends:
            if name == "label_smoothing" and recipe.loss != "cross-entropy":
                checker.say(key, f"only 'cross-entropy' smooths labels, the loss is '{recipe.loss}'")
                break
            if name in WHOLE and value != int(value):
                checker.say(key, f"{value:g} is no whole number")
            else:
                checker.table(Recipe, "space", {**recipe.model_dump(), name: int(value) if name in WHOLE else value})
    return found
