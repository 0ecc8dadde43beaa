"""The reference of configuration files, sweeps/README.md, agrees with the models and registries."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from regimes.config import discovery_file, hpo_file, sweep_file
from regimes.config.discovery import Pressure
from regimes.config.discovery_file import DiscoveryConfig
from regimes.config.hpo import TUNABLE, Dimension, Hpo, LadderSpec, MapSpec, StudySpec
from regimes.config.recipe import RECIPES, Recipe
from regimes.config.sweep import Checkpoint, LoadConfig, MeasureConfig, Sweep
from regimes.data import AUGMENTATIONS, DATASETS
from regimes.discovery import ESTIMATORS
from regimes.hpo import PROXIES, SAMPLERS, STOPPERS
from regimes.knobs import KNOBS
from regimes.landscape import METRICS
from regimes.losses import LOSSES
from regimes.models import BUILDER_ARGUMENTS, MODELS
from regimes.pruners import ALLOCATIONS, DISCOVERED, PRUNERS, STRUCTURED_PRUNERS
from regimes.registry import lookup

FOLDER = Path(__file__).parents[2] / "sweeps"
TEXT = (FOLDER / "README.md").read_text()
PARTS = {part.splitlines()[0]: part for part in TEXT.split("\n## ")[1:]}
SECTIONS = {section.splitlines()[0]: section for section in re.split(r"\n##+ ", TEXT)[1:]}

# {heading of a section: (model, {key that is set elsewhere}, {key without a field})}
MODELS_OF_SECTIONS: dict[str, tuple[type[BaseModel], set[str], set[str]]] = {
    "Top level of a sweep": (Sweep, {*sweep_file.TABLES, "points"}, set()),
    "`[recipe]`": (Recipe, {"stop"}, {"base"}),
    "`[load]`": (LoadConfig, set(), set()),
    "`[dense]`": (Checkpoint, set(), set()),
    "`[measure]`": (MeasureConfig, set(), set()),
    "Top level of a discovery": (DiscoveryConfig, {"data", "model", "recipe", "pressures"}, set()),
    "`[discover]`": (Pressure, set(), set()),
    "Top level of a search": (Hpo, {*hpo_file.TABLES, "pruned"}, set()),
    "`[space]`": (Dimension, set(), set()),
    "`[ladder]`": (LadderSpec, set(), set()),
    "`[study]`": (StudySpec, set(), set()),
    "`[map]`": (MapSpec, set(), set()),
}


def table(section: str, first: str) -> list[list[str]]:
    """Rows of the table in a section whose first column has this title."""
    blocks = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", SECTIONS[section] + "\n", flags=re.M)
    (block,) = blocks
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines()]


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def type_text(schema: Mapping[str, Any]) -> str:
    """A type and its bounds as the reference writes them, from its JSON schema."""
    if "enum" in schema:
        return ", ".join(f'`"{value}"`' for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(type_text(option) for option in schema["anyOf"] if option.get("type") != "null")
    if schema.get("type") == "array":
        return f"list of {type_text(schema['items'])}"
    names = {"integer": "int", "number": "float", "boolean": "bool", "string": "string"}
    name = names.get(schema.get("type", ""), "table")
    low, low_open = schema.get("minimum", schema.get("exclusiveMinimum")), "exclusiveMinimum" in schema
    high, high_open = schema.get("maximum", schema.get("exclusiveMaximum")), "exclusiveMaximum" in schema
    if high is not None and high < 1e6:
        return f"{name} in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    return name if low is None else f"{name} {'>' if low_open else '>='} {low:g}"


def same_default(cell: str, schema: Mapping[str, Any]) -> bool:
    default = schema.get("default", {})
    if default is None:
        return cell == "unset"
    written = tomllib.loads(f"value = {ticked(cell)[0]}")["value"]
    return bool(written == ({} if isinstance(default, dict) else default))


@pytest.mark.parametrize("section", MODELS_OF_SECTIONS)
def test_every_key_is_documented_with_its_type_and_default(section: str) -> None:
    model, elsewhere, more = MODELS_OF_SECTIONS[section]
    schema = model.model_json_schema()
    rows = {ticked(row[0])[0]: row for row in table(section, "key")}
    assert set(rows) == set(schema["properties"]) - elsewhere | more
    for key, (_, allowed, default, meaning) in rows.items():
        assert meaning
        if key in more:
            continue
        properties = schema["properties"][key]
        expected = type_text(properties)
        assert re.match(rf"{re.escape(expected)}(?![\w ]|, `)", allowed), f"{key}: {expected}, got {allowed}"
        if key == "name":
            assert default == "the file's name"
        elif key in schema.get("required", ()):
            assert default == "required"
        else:
            assert same_default(default, properties), f"{key}: {properties.get('default')}, got {default}"


@pytest.mark.parametrize(
    ("section", "key", "names"),
    [
        ("`[recipe]`", "base", RECIPES),
        ("`[recipe]`", "loss", LOSSES),
        ("`[recipe]`", "augment", AUGMENTATIONS),
        ("`[load]`", "pruner", [*PRUNERS, *STRUCTURED_PRUNERS, DISCOVERED]),
        ("`[load]`", "allocation", ALLOCATIONS),
        ("`[discover]`", "estimator", ESTIMATORS),
        ("`[ladder]`", "proxy", PROXIES),
        ("`[study]`", "sampler", SAMPLERS),
        ("`[study]`", "stopper", STOPPERS),
    ],
)
def test_every_name_of_a_registry_is_documented(section: str, key: str, names: Any) -> None:
    (allowed,) = (row[1] for row in table(section, "key") if row[0] == f"`{key}`")
    assert ticked(allowed) == [f'"{name}"' for name in names]


def options(function: Callable[..., Any], given: tuple[str, ...]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {
        each.name: list(each.default) if isinstance(each.default, tuple) else each.default
        for each in parameters
        if each.name not in given and each.kind is not each.VAR_KEYWORD
    }


def documented(cell: str) -> dict[str, Any]:
    """{option: default} of a cell such as `a = 1`, `b`."""
    pairs = [each.partition(" = ") for each in ticked(cell)]
    empty = inspect.Parameter.empty
    return {name: tomllib.loads(f"value = {value}")["value"] if value else empty for name, _, value in pairs}


@pytest.mark.parametrize(
    ("section", "title", "registry", "given"),
    [("`[data]`", "data set", DATASETS, ()), ("`[model]`", "model", MODELS, BUILDER_ARGUMENTS)],
)
def test_data_sets_and_models_are_documented_with_their_options(
    section: str, title: str, registry: Mapping[str, str], given: tuple[str, ...]
) -> None:
    rows = {name.strip('"'): row[1] for row in table(section, title) for name in ticked(row[0])}
    assert set(rows) == set(registry)
    for name, cell in rows.items():
        assert documented(cell) == options(lookup(registry, name, title), given), name


def test_knobs_are_documented() -> None:
    rows = {ticked(row[0])[0]: row for row in table("`[temperature]`", "knob")}
    assert set(rows) == set(KNOBS)
    for name, (_, allowed, hotter, _) in rows.items():
        knob = lookup(KNOBS, name, "knob")
        assert allowed == f"{knob.kind.__name__} {'>' if knob.low_open else '>='} {knob.low:g}"
        assert hotter == knob.hotter


def test_metrics_are_documented_with_their_options() -> None:
    metrics = {name: lookup(METRICS, name, "metric") for name in METRICS}
    rows = {ticked(row[0])[0].strip('"'): row for row in table("`[measure]`", "metric")}
    assert set(rows) == set(metrics)
    kinds = {metric.table: metric.options for metric in metrics.values() if dataclasses.fields(metric.options)}
    for name, metric in metrics.items():
        assert rows[name][1] == {"model": "each copy", "pair": "each pair of copies"}[metric.subject]
        assert rows[name][2] == (f"`[measure.{metric.table}]`" if metric.table in kinds else "-")
    tables = {ticked(row[0])[0]: row for row in table("`[measure]`", "table")}
    assert set(tables) == {f"[measure.{name}]" for name in kinds}
    for name, kind in kinds.items():
        _, cell, meaning = tables[f"[measure.{name}]"]
        assert documented(cell) == {field.name: field.default for field in dataclasses.fields(kind)}
        schema = TypeAdapter(kind).json_schema()["properties"]
        for value in (value for field in schema.values() for value in field.get("enum", ())):
            assert f'"{value}"' in cell or f'`"{value}"`' in meaning


def test_hyperparameters_are_documented() -> None:
    (line,) = re.findall(r"Allowed:\s(.*)\n\n", SECTIONS["`[space]`"])
    assert tuple(ticked(line)) == TUNABLE


def test_every_table_is_documented_and_no_other() -> None:
    kinds = {"Sweep files": sweep_file, "Discovery files": discovery_file, "Search files": hpo_file}
    headings = {name: set(re.findall(r"^### `\[(\w+)\]`$", part, flags=re.M)) for name, part in PARTS.items()}
    for name, module in kinds.items():
        assert {f"[{each}]" for each in module.TABLES} <= set(ticked(PARTS[name]))
        assert headings[name] <= set(module.TABLES)
    assert set.union(*headings.values()) >= {each for module in kinds.values() for each in module.TABLES} - {"retrain"}


def test_every_file_has_a_line() -> None:
    rows = [*re.findall(r"^\| \[([\w-]+\.toml)\]\(([\w-]+\.toml)\) \|", PARTS["Files in this folder"], flags=re.M)]
    assert sorted(target for _, target in rows) == sorted(file.name for file in FOLDER.glob("*.toml"))
    assert all(name == target for name, target in rows)
