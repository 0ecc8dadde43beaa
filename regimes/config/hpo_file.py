"""Reader of search files (``regimes hpo``), which reports all errors at once, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regimes.config.hpo import INTEGERS, TUNABLE, Dimension, Hpo, LadderSpec, MapSpec, StudySpec
from regimes.config.overrides import apply_overrides
from regimes.config.pruned_search import PRUNED_TABLES, TUNABLE_PRUNED, check_pruned
from regimes.config.recipe import Recipe
from regimes.config.sweep import Named
from regimes.config.sweep_file import SweepChecker, read_toml
from regimes.config.validation import duplicates
from regimes.data import DATASETS
from regimes.errors import UserError, one_line
from regimes.hpo import PROXIES, SAMPLERS, STOPPERS
from regimes.models import BUILDER_ARGUMENTS, MODELS
from regimes.registry import lookup, nearest, options_of, types_of

TABLES = ("data", "model", "recipe", "space", "ladder", "study", "map")
PLAIN = ("name", "trials", "batch", "seed", "final_seeds")
OBJECTIVES = ("full", "pruned")
REQUIRED = ("data", "model", "space")


def read_hpo(path: str | Path, changes: Iterable[str] = ()) -> Hpo:
    """Read a search file, apply overrides (see `apply_overrides`) and fill in defaults.

    Raises:
        UserError: one line for each error in the file.
    """
    path = Path(path)
    raw = apply_overrides(read_toml(path, "search file", "sweeps/digits-hpo.toml"), changes)
    return resolve_hpo(raw, str(path), path.stem)


def resolve_hpo(raw: Mapping[str, Any], source: str = "search", default_name: str = "search") -> Hpo:
    """Validate a parsed search file (a plain dict); see `read_hpo`."""
    checker = SweepChecker(source)
    objective = raw.get("objective", "full")
    if objective not in OBJECTIVES:
        raise UserError(f"{source}: objective: {one_line(repr(objective), 100)}; allowed: {', '.join(OBJECTIVES)}")
    pruned = objective == "pruned"
    tables, required = ((*TABLES, *PRUNED_TABLES), (*REQUIRED, "load")) if pruned else (TABLES, REQUIRED)
    checker.check_names(raw, ("objective", *PLAIN, *(("retrain_seeds",) if pruned else ()), *tables))
    raw = checker.check_tables(raw, tables, required, "a search")
    found: dict[str, Any] = {
        "data": checker.named("data", raw, DATASETS, "data set", given=()),
        "model": checker.named("model", raw, MODELS, "model", given=BUILDER_ARGUMENTS),
        "ladder": checker.validate(LadderSpec, "ladder", raw.get("ladder", {})),
        "study": checker.validate(
            StudySpec, "study", {**({"value": "error"} if pruned else {}), **raw.get("study", {})}
        ),
        "map": checker.validate(MapSpec, "map", raw.get("map", {})),
    }
    found["recipe"] = checker.recipe(raw, found["data"])
    names = TUNABLE_PRUNED if pruned else TUNABLE
    found["space"] = _space(checker, raw.get("space", {}), found["recipe"], names) if "space" in raw else None
    found["pruned"] = check_pruned(checker, raw, found["recipe"]) if pruned and "load" in raw else None
    for key, name, registry, what in (
        ("ladder.proxy", getattr(found["ladder"], "proxy", None), PROXIES, "proxy"),
        ("study.sampler", getattr(found["study"], "sampler", None), SAMPLERS, "sampler"),
        ("study.stopper", getattr(found["study"], "stopper", None), STOPPERS, "stopper"),
    ):
        if name is not None:
            checker.resolve_name(key, name, registry, what)
    if found["ladder"] is not None:
        _ladder(checker, found["ladder"])
        _option_ladder(checker, found["ladder"], found["model"])
    UserError.collect(checker.errors)
    rest = {
        "objective": objective,
        "name": raw.get("name", default_name),
        **{key: raw[key] for key in PLAIN[1:] if key in raw},
    }
    spec: Hpo = checker.validate(Hpo, "", {**found, **rest})
    UserError.collect(checker.errors)
    return spec


def _ladder(checker: SweepChecker, ladder: LadderSpec) -> None:
    if ladder.densities is not None and ladder.step_time is not None:
        checker.add_error("ladder.step_time", "cannot be combined with densities; remove one of the two")
    for name in ("densities", "step_time", "images", "reports", "proxy_reports"):
        for value in duplicates(getattr(ladder, name) or ()):
            checker.add_error(f"ladder.{name}", f"duplicate value {value}")


def _option_ladder(checker: SweepChecker, ladder: LadderSpec, model: Named | None) -> None:
    if ladder.option is None and ladder.values is None:
        return
    if ladder.option is None or not ladder.values:
        checker.add_error("ladder", 'option and values go together, e.g. option = "width", values = [8, 16]')
        return
    for name in ("proxy", "densities", "step_time", "most"):
        if name in ladder.model_fields_set and getattr(ladder, name) is not None:
            checker.add_error(f"ladder.{name}", "cannot be combined with option; remove one of the two")
    for value in duplicates(ladder.values):
        checker.add_error("ladder.values", f"duplicate value {value!r}")
    if model is None:
        return
    if ladder.option in model.options and model.options[ladder.option] in ladder.values:
        checker.add_error("ladder.values", f"{model.options[ladder.option]!r} is the full network's; remove it")
    try:
        builder = lookup(MODELS, model.name, "model")
    except UserError:  # reported for model.name
        return
    allowed, _ = options_of(builder, BUILDER_ARGUMENTS)
    if allowed is not None and ladder.option not in allowed:
        known = f"{nearest(ladder.option, allowed)}; allowed: {', '.join(allowed) or 'none'}"
        checker.add_error("ladder.option", f"model '{model.name}' has no option '{ladder.option}'{known}")
    elif ladder.option in (types := types_of(builder)):
        for value in ladder.values:
            checker.check_type("ladder.values", types[ladder.option], value)


def _space(
    checker: SweepChecker, table: Mapping[str, Any], recipe: Recipe | None, allowed: Sequence[str]
) -> dict[str, Dimension] | None:
    if not table:
        checker.add_error("space", f"needs at least one hyperparameter; allowed: {', '.join(allowed)}")
    found = {}
    for name, given in table.items():
        key = f"space.{name}"
        if name not in allowed:
            checker.add_error(key, f"unknown hyperparameter{nearest(name, allowed)}; allowed: {', '.join(allowed)}")
            continue
        as_floats = [float(each) if type(each) is int else each for each in given] if isinstance(given, list) else given
        if isinstance(as_floats, Mapping):
            as_floats = {k: float(v) if type(v) is int else v for k, v in as_floats.items()}
        dimension: Dimension | None = checker.validate(Dimension, key, as_floats)
        if dimension is None:
            continue
        found[name] = dimension
        if recipe is None:
            continue
        for value in dimension.choices or dimension.ends:
            if name == "label_smoothing" and recipe.loss != "cross-entropy":
                checker.add_error(key, f"needs loss = 'cross-entropy', the loss is '{recipe.loss}'")
                break
            if name in INTEGERS and value != int(value):
                checker.add_error(key, f"{value:g} is not a whole number")
                continue
            changed: Recipe | None = checker.validate(
                Recipe, "space", {**recipe.model_dump(), name: int(value) if name in INTEGERS else value}
            )
            if changed is not None and name in changed.unused:
                checker.add_error(key, changed.unused[name])
                break
    return found
