"""Read a sweep file and name all its mistakes at once, one line each."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from regimes.config.check_checkpoints import family
from regimes.config.check_load_axis import check_load
from regimes.config.overrides import changed
from regimes.config.recipe import RECIPES, Recipe
from regimes.config.sweep import MeasureConfig, Named, Sweep
from regimes.config.validation import Checker
from regimes.data import AUGMENTATIONS, DATASETS
from regimes.data.augment import Augmentation
from regimes.errors import UserError
from regimes.knobs import KNOBS, Knob
from regimes.landscape import METRICS
from regimes.landscape.metric import Metric
from regimes.losses import LOSSES
from regimes.models import GIVEN, MODELS
from regimes.registry import Registry, allow_imports_from, load, nearest, options_of

TABLES = ("data", "model", "recipe", "retrain", "dense", "temperature", "load", "measure")
PLAIN = ("name", "dense_seeds", "retrain_seeds")
REQUIRED = ("data", "model", "temperature", "load")


def read_sweep(path: str | Path, changes: Iterable[str] = ()) -> Sweep:
    """Return the sweep a TOML file describes, with all defaults filled in; some keys may be set anew, see `changed`.

    Raises:
        UserError: one line for each mistake in the file: file, key, what is wrong, what is allowed.
    """
    path = Path(path)
    raw = read_toml(path, "sweep file", "sweeps/digits.toml")
    return resolve(changed(raw, changes), str(path), default_name=path.stem, folder=path.resolve().parent)


def read_toml(path: Path, what: str, example: str) -> dict[str, Any]:
    """Parse a TOML file; a user's own code beside it can be imported from then on.

    Raises:
        UserError: there is no such file, or it is no TOML.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; a {what} is expected, e.g. {example}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    allow_imports_from(str(path.resolve().parent))
    return raw


def resolve(
    raw: Mapping[str, Any], source: str = "sweep", default_name: str = "sweep", folder: Path | None = None
) -> Sweep:
    """Return the sweep that a parsed TOML file (a plain dict) describes; see `read_sweep`.

    Checkpoints are looked for beside the file, in ``folder`` (None: where the command is run).
    """
    checker = SweepChecker(source)
    checker.folder = folder or Path.cwd()
    sweep = checker.sweep(raw, default_name)
    UserError.collect(checker.mistakes)
    assert sweep is not None
    return sweep


class SweepChecker(Checker):
    """Checks table by table and goes on after a mistake, so that all are found in one reading.

    Attributes:
        given: whether dense networks come from checkpoints, so that knobs say how they were trained elsewhere.
        folder: beside which checkpoints are looked for.
    """

    given = False
    folder = Path()

    def sweep(self, raw: Mapping[str, Any], default_name: str) -> Sweep | None:
        self.names(raw, (*PLAIN, *TABLES))
        self.given = "dense" in raw
        raw, dense = family(self, raw, self.folder)
        raw = self.tables(raw, TABLES, REQUIRED, "a sweep")
        plain = {key: self.plain(key, kind, raw, default) for key, (kind, default) in _plain(default_name).items()}
        raw = self.first_width(raw)
        data = self.named("data", raw, DATASETS, "data set", given=())
        model = self.named("model", raw, MODELS, "model", given=GIVEN)
        recipe = self.recipe(raw, data)
        retrain = self.retrain(raw, recipe)
        temperature = self.temperature(raw, recipe)
        load_axis = check_load(self, raw, recipe, temperature or {}, self.given)
        measure = self.measure(raw, plain["retrain_seeds"])
        if self.mistakes:
            return None
        checked: dict[str, Any] = {"data": data, "model": model, "recipe": recipe, "retrain": retrain, **plain}
        checked |= {"dense": dense, "temperature": temperature, "load": load_axis, "measure": measure}
        return Sweep(**checked)

    def plain(self, key: str, kind: Any, raw: Mapping[str, Any], default: Any) -> Any:
        return self.table(kind, key, raw.get(key, default))

    def named(
        self, key: str, raw: Mapping[str, Any], registry: Registry, what: str, given: Iterable[str]
    ) -> Named | None:
        if key not in raw:
            return None
        named: Named | None = self.table(Named, key, raw[key])
        if named is None:
            return None
        builder = self.known(f"{key}.name", named.name, registry, what)
        if builder is not None:
            self.options(key, named.options, *options_of(builder, given))
        return named

    def first_width(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """The file with the first width of the load axis as the model's own, so that it is checked as an option."""
        load, model = raw.get("load", {}), raw.get("model", {})
        if "width" not in load:
            return raw
        if "width" in model:
            self.say("model.width", "stands in [load] already; leave it out here")
        if self.given:
            self.say("load.width", "needs networks of each width; checkpoints have one architecture")
        return {**raw, "model": {**model, "width": (self.axis("load.width", load["width"]) or [1])[0]}}

    def recipe(self, raw: Mapping[str, Any], data: Named | None) -> Recipe | None:
        given = dict(raw.get("recipe", {}))
        own = data.name if data is not None and data.name in RECIPES else "three-regime"
        base = given.pop("base", own)
        if not isinstance(base, str) or base not in RECIPES:
            self.say("recipe.base", f"unknown recipe '{base}'{nearest(base, RECIPES)}; allowed: {', '.join(RECIPES)}")
            base = "three-regime"
        return self.recipe_from(RECIPES[base], "recipe", given)

    def retrain(self, raw: Mapping[str, Any], recipe: Recipe | None) -> Recipe | None:
        return self.recipe_from(recipe or Recipe(), "retrain", dict(raw.get("retrain", {})))

    def recipe_from(self, base: Recipe, key: str, given: dict[str, Any]) -> Recipe | None:
        if "stop" in given:
            self.say(f"{key}.stop", "is set by the knob: write [temperature] epochs = [...] instead")
            given.pop("stop")
        recipe: Recipe | None = self.table(Recipe, key, {**base.model_dump(), **given})
        if recipe is not None and (key == "recipe" or "augment" in given):
            self.known(f"{key}.augment", recipe.augment, AUGMENTATIONS, "augmentation", Augmentation)
        if recipe is not None and (key == "recipe" or "loss" in given):
            self.known(f"{key}.loss", recipe.loss, LOSSES, "loss")
        if recipe is not None and recipe.label_smoothing and recipe.loss != "cross-entropy":
            self.say(f"{key}.label_smoothing", f"only 'cross-entropy' smooths labels, the loss is '{recipe.loss}'")
        return recipe

    def temperature(self, raw: Mapping[str, Any], recipe: Recipe | None) -> dict[str, tuple[Any, ...]] | None:
        table = raw.get("temperature")
        if table is None:
            return None
        if not table:
            self.say("temperature", f"needs at least one knob with its values; allowed: {', '.join(KNOBS)}")
        found = {name: self.values(f"temperature.{name}", name, given, recipe) for name, given in table.items()}
        names = [knob.name for knob, _ in found.values() if knob is not None]
        for name in dict.fromkeys(each for each in names if names.count(each) > 1):
            self.say("temperature", f"the knob '{name}' stands there twice, by its name and by its import path")
        return {name: values for name, (_, values) in found.items()}

    def values(self, key: str, name: str, given: Any, recipe: Recipe | None) -> tuple[Knob | None, tuple[Any, ...]]:
        knob: Knob | None = self.known(key, name, KNOBS, "knob", Knob)
        values = self.axis(key, given)
        if knob is None:
            return None, ()
        for value in values:
            if not knob.accepts(value):
                self.say(key, f"{value!r} is no {knob.long_name}; allowed: {knob.allowed}")
            elif knob.name == "epochs" and recipe is not None and value > recipe.epochs and not self.given:
                self.say(key, f"{value} lies beyond the schedule's horizon recipe.epochs = {recipe.epochs}")
        return knob, tuple(knob.kind(value) for value in values if knob.accepts(value))

    def measure(self, raw: Mapping[str, Any], retrain_seeds: int | None) -> MeasureConfig | None:
        measure: MeasureConfig | None = self.table(MeasureConfig, "measure", raw.get("measure", {}))
        if measure is None:
            return None
        self.axis("measure.metrics", list(measure.metrics))
        metrics = [self.known("measure.metrics", name, METRICS, "metric", Metric) for name in measure.metrics]
        chosen = [metric for metric in metrics if metric is not None]
        tables = {load(METRICS, name, "metric").table: load(METRICS, name, "metric") for name in METRICS}
        tables |= {metric.table: metric for metric in chosen}
        resolved: dict[str, Any] = {}
        for name, options in (measure.model_extra or {}).items():
            if name not in tables:
                allowed = f"metrics, and the tables {', '.join(sorted(tables))}"
                self.say(f"measure.{name}", f"unknown key{nearest(name, tables)}; allowed: {allowed}")
            elif not isinstance(options, Mapping):
                self.say(f"measure.{name}", f"must be a table [measure.{name}], got {options!r}")
            else:
                resolved[name] = self.metric_options(f"measure.{name}", tables[name].options, options)
        for metric in chosen:
            if metric.subject == "pair" and retrain_seeds is not None and retrain_seeds < 2:
                self.say("retrain_seeds", f"metric '{metric.name}' compares two retrained copies; allowed: 2 or more")
        return MeasureConfig(metrics=measure.metrics, **resolved)

    def metric_options(self, key: str, kind: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
        fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        for name, value in options.items():
            self.plain_value(f"{key}.{name}", value)
            if name not in fields:
                self.say(f"{key}.{name}", f"unknown key{nearest(name, fields)}; allowed: {', '.join(fields) or 'none'}")
        checked = self.table(kind, key, {name: value for name, value in options.items() if name in fields})
        return {} if checked is None else dataclasses.asdict(checked)


def _plain(default_name: str) -> dict[str, tuple[Any, Any]]:
    fields = Sweep.model_fields
    return {
        "name": (_type_of(fields["name"]), default_name),
        **{key: (_type_of(fields[key]), fields[key].default) for key in ("dense_seeds", "retrain_seeds")},
    }


def _type_of(field: Any) -> Any:
    return Annotated[(field.annotation, *field.metadata)]
