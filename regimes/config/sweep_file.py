"""Reader of sweep files, which reports all errors at once, one line each."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError

from regimes.config.check_checkpoints import check_checkpoints
from regimes.config.check_load_axis import check_load
from regimes.config.overrides import apply_overrides
from regimes.config.recipe import LOOP_ARGUMENTS, RECIPES, USED_BY, Recipe
from regimes.config.sweep import MeasureConfig, Named, Sweep
from regimes.config.validation import MAX_BYTES, Checker, duplicates, parse_toml
from regimes.data import AUGMENTATIONS, DATASETS
from regimes.data.augment import Augmentation
from regimes.errors import UserError
from regimes.knobs import KNOBS, Knob, Value
from regimes.landscape import METRICS
from regimes.landscape.metric import Metric
from regimes.losses import LOSSES
from regimes.models import BUILDER_ARGUMENTS, MODELS
from regimes.registry import Registry, allow_imports_from, lookup, nearest, options_of

TABLES = ("data", "model", "recipe", "retrain", "dense", "temperature", "load", "measure")
PLAIN = ("name", "dense_seeds", "retrain_seeds")
REQUIRED = ("data", "model", "temperature", "load")
MAX_STAGES = 2_000_000  # of a sweep: 100,000 cells of 20 stages; listing them takes a minute or two and a gigabyte


def read_sweep(path: str | Path, changes: Iterable[str] = ()) -> Sweep:
    """Read a sweep file, apply overrides (see `apply_overrides`) and fill in defaults.

    Raises:
        UserError: one line for each error in the file: file, key, problem, allowed values.
    """
    path = Path(path)
    raw = read_toml(path, "sweep file", "sweeps/digits.toml")
    if "space" in raw and "temperature" not in raw:
        raise UserError(f"{path}: a search file, not a sweep file; use: regimes hpo {path}")
    return resolve_sweep(apply_overrides(raw, changes), str(path), default_name=path.stem, folder=path.resolve().parent)


def read_toml(path: Path, what: str, example: str) -> dict[str, Any]:
    """Parse a TOML file, and allow imports of user modules from its folder.

    Args:
        path: the file.
        what: the kind of file, for error messages.
        example: a file of that kind, for error messages.

    Raises:
        UserError: the file does not exist or is not valid TOML; see `parse_toml`.
    """
    try:
        with path.open("rb") as file:
            raw = parse_toml(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; expected a {what}, e.g. {example}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    allow_imports_from(str(path.resolve().parent))
    return raw


def resolve_sweep(
    raw: Mapping[str, Any], source: str = "sweep", default_name: str = "sweep", folder: Path | None = None
) -> Sweep:
    """Validate a parsed sweep file (a plain dict); see `read_sweep`.

    Relative checkpoint paths start from ``folder`` (None: the current folder). A sweep has at most `MAX_STAGES` stages.
    """
    checker = SweepChecker(source)
    checker.folder = folder or Path.cwd()
    sweep = checker.sweep(raw, default_name)
    UserError.collect(checker.errors)
    assert sweep is not None
    if (count := sweep.count_stages()) > MAX_STAGES:
        raise UserError(
            f"{source}: {count:,} trainings, prunings and measurements; allowed: {MAX_STAGES:,}; use fewer values of "
            "[temperature] and [load], or fewer seeds"
        )
    return sweep


class SweepChecker(Checker):
    """Validator of sweep files; it continues after an error, so that all errors are reported at once.

    Attributes:
        pretrained: whether dense networks come from checkpoints, so that knobs describe a training elsewhere.
        folder: the folder that relative checkpoint paths start from.
    """

    pretrained = False
    folder = Path()

    def sweep(self, raw: Mapping[str, Any], default_name: str) -> Sweep | None:
        """Validate a whole sweep file; return None after an error."""
        self.check_names(raw, (*PLAIN, *TABLES))
        self.pretrained = "dense" in raw
        raw, dense = check_checkpoints(self, raw, self.folder)
        raw = self.check_tables(raw, TABLES, REQUIRED, "a sweep")
        plain = {
            key: self.validate(kind, key, raw.get(key, default))
            for key, (kind, default) in _plain(default_name).items()
        }
        raw = self._with_first_width(raw)
        data = self.named("data", raw, DATASETS, "data set", given=())
        model = self.named("model", raw, MODELS, "model", given=BUILDER_ARGUMENTS)
        recipe = self.recipe(raw, data)
        retrain = self._recipe_on(recipe or Recipe(), "retrain", dict(raw.get("retrain", {})))
        temperature = self._temperature(raw, recipe)
        load_axis = check_load(self, raw, recipe, temperature or {}, self.pretrained)
        measure = self._measure(raw, plain["retrain_seeds"])
        if self.errors:
            return None
        checked: dict[str, Any] = {"data": data, "model": model, "recipe": recipe, "retrain": retrain, **plain}
        checked |= {"dense": dense, "temperature": temperature, "load": load_axis, "measure": measure}
        return Sweep(**checked)

    def named(
        self, key: str, raw: Mapping[str, Any], registry: Registry, what: str, given: Iterable[str]
    ) -> Named | None:
        """Validate a table with a name and options; ``given`` are the arguments that do not come from the file."""
        if key not in raw:
            return None
        named: Named | None = self.validate(Named, key, raw[key])
        if named is None:
            return None
        builder = self.resolve_name(f"{key}.name", named.name, registry, what)
        if builder is not None:
            self.check_options(key, named.options, builder, given)
        return named

    def _with_first_width(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Copy the first width of the load axis to the model table, so that it is checked as an option."""
        load, model = raw.get("load", {}), raw.get("model", {})
        if "width" not in load:
            return raw
        if "width" in model:
            self.add_error("model.width", "already set in [load]; remove it here")
        if self.pretrained:
            self.add_error("load.width", "not allowed with [dense] checkpoints, which have one architecture")
        return {**raw, "model": {**model, "width": (self.check_list("load.width", load["width"]) or [1])[0]}}

    def recipe(self, raw: Mapping[str, Any], data: Named | None) -> Recipe | None:
        """Validate ``[recipe]``, on top of its base or of the data set's default recipe."""
        given = dict(raw.get("recipe", {}))
        own = data.name if data is not None and data.name in RECIPES else "three-regime"
        base = given.pop("base", own)
        if not isinstance(base, str) or base not in RECIPES:
            self.add_error(
                "recipe.base", f"unknown recipe '{base}'{nearest(base, RECIPES)}; allowed: {', '.join(RECIPES)}"
            )
            base = "three-regime"
        return self._recipe_on(RECIPES[base], "recipe", given)

    def _recipe_on(self, base: Recipe, key: str, given: dict[str, Any]) -> Recipe | None:
        if "stop" in given:
            self.add_error(f"{key}.stop", "cannot be set here; use [temperature] epochs = [...] instead")
            given.pop("stop")
        kept = base.model_dump()
        if "optimizer" in given:  # what only another optimiser uses is not kept
            kept = {n: each for n, each in kept.items() if n not in USED_BY or given["optimizer"] in USED_BY[n]}
        recipe: Recipe | None = self.validate(Recipe, key, {**kept, **given})
        for name, problem in recipe.unused.items() if recipe is not None else ():
            if key == "recipe" or {name, "optimizer"} & set(given):
                self.add_error(f"{key}.{name}", problem)
        if recipe is not None and (key == "recipe" or "augment" in given):
            self.resolve_name(f"{key}.augment", recipe.augment, AUGMENTATIONS, "augmentation", Augmentation)
        if recipe is not None and (key == "recipe" or "loss" in given):
            self.resolve_name(f"{key}.loss", recipe.loss, LOSSES, "loss")
        if recipe is not None and recipe.train and (key == "recipe" or "train" in given):
            loop = self.resolve_name(f"{key}.train", recipe.train, {}, "training loop")
            for name in options_of(loop, LOOP_ARGUMENTS)[1] if loop is not None else ():
                self.add_error(f"{key}.train", f"'{recipe.train}' needs '{name}'; given: {', '.join(LOOP_ARGUMENTS)}")
        if recipe is not None and recipe.label_smoothing and recipe.loss != "cross-entropy":
            self.add_error(f"{key}.label_smoothing", f"needs loss = 'cross-entropy', the loss is '{recipe.loss}'")
        return recipe

    def _temperature(self, raw: Mapping[str, Any], recipe: Recipe | None) -> dict[str, tuple[Any, ...]] | None:
        table = raw.get("temperature")
        if table is None:
            return None
        if not table:
            self.add_error("temperature", f"needs at least one knob with values; allowed: {', '.join(KNOBS)}")
        axes = {name: self._knob_values(f"temperature.{name}", name, given, recipe) for name, given in table.items()}
        names = [knob.name for knob, _ in axes.values() if knob is not None]
        for name in duplicates(names):
            self.add_error("temperature", f"duplicate knob '{name}', given by name and by import path")
        return {name: values for name, (_, values) in axes.items()}

    def _knob_values(
        self, key: str, name: str, given: Any, recipe: Recipe | None
    ) -> tuple[Knob | None, tuple[Any, ...]]:
        knob: Knob | None = self.resolve_name(key, name, KNOBS, "knob", Knob)
        values = self.check_list(key, given)
        if knob is None:
            return None, ()
        for value in values:
            if not knob.accepts(value):
                self.add_error(key, f"invalid {knob.long_name} {value!r}; allowed: {knob.allowed}")
            elif knob.name == "epochs" and recipe is not None and value > recipe.epochs and not self.pretrained:
                self.add_error(key, f"{value} exceeds recipe.epochs = {recipe.epochs}")
        accepted = tuple(knob.kind(value) for value in values if knob.accepts(value))
        if recipe is not None and not self.pretrained:
            for problem in dict.fromkeys(each for value in accepted for each in _problems_of(knob, value, recipe)):
                self.add_error(key, problem)
        return knob, accepted

    def _measure(self, raw: Mapping[str, Any], retrain_seeds: int | None) -> MeasureConfig | None:
        measure: MeasureConfig | None = self.validate(MeasureConfig, "measure", raw.get("measure", {}))
        if measure is None:
            return None
        self.check_list("measure.metrics", list(measure.metrics))
        metrics = [self.resolve_name("measure.metrics", name, METRICS, "metric", Metric) for name in measure.metrics]
        chosen = [metric for metric in metrics if metric is not None]
        tables = {lookup(METRICS, name, "metric").table: lookup(METRICS, name, "metric") for name in METRICS}
        tables |= {metric.table: metric for metric in chosen}
        resolved: dict[str, Any] = {}
        for name, options in (measure.model_extra or {}).items():
            if name not in tables:
                allowed = f"metrics, and the tables {', '.join(sorted(tables))}"
                self.add_error(f"measure.{name}", f"unknown key{nearest(name, tables)}; allowed: {allowed}")
            elif not isinstance(options, Mapping):
                self.add_error(f"measure.{name}", f"must be a table [measure.{name}], got {options!r}")
            else:
                resolved[name] = self._metric_options(f"measure.{name}", tables[name].options, options)
        for metric in chosen:
            if metric.subject == "pair" and retrain_seeds is not None and retrain_seeds < 2:
                self.add_error(
                    "retrain_seeds", f"metric '{metric.name}' compares two retrained copies; allowed: 2 or more"
                )
        return MeasureConfig(metrics=measure.metrics, **resolved)

    def _metric_options(self, key: str, kind: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
        fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        for name in options:
            if name not in fields:
                self.add_error(
                    f"{key}.{name}", f"unknown key{nearest(name, fields)}; allowed: {', '.join(fields) or 'none'}"
                )
        checked = self.validate(kind, key, {name: value for name, value in options.items() if name in fields})
        return {} if checked is None else dataclasses.asdict(checked)


def _problems_of(knob: Knob, value: Value, recipe: Recipe) -> list[str]:
    """Return what a value of a knob makes wrong with the dense recipe."""
    try:
        changed = Recipe.model_validate({**recipe.model_dump(), **knob.changes(recipe, value)})
    except ValidationError as error:
        reasons = (each["msg"].removeprefix("Input ") for each in error.errors())
        return [f"invalid {knob.long_name} {value!r}: {reason}" for reason in reasons]
    return [problem for name, problem in changed.unused.items() if name not in recipe.unused]


def _plain(default_name: str) -> dict[str, tuple[Any, Any]]:
    fields = Sweep.model_fields
    return {
        "name": (_type_of(fields["name"]), default_name),
        **{key: (_type_of(fields[key]), fields[key].default) for key in ("dense_seeds", "retrain_seeds")},
    }


def _type_of(field: Any) -> Any:
    return Annotated[(field.annotation, *field.metadata)]
