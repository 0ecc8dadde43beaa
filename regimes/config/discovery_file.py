"""What to discover: a TOML file, read and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from regimes.config.discovery import Pressure
from regimes.config.overrides import changed
from regimes.config.recipe import Count, Recipe, Section
from regimes.config.sweep import Named
from regimes.config.sweep_file import SweepChecker, read_toml
from regimes.data import DATASETS
from regimes.discovery import ESTIMATORS
from regimes.errors import UserError
from regimes.models import GIVEN, MODELS

TABLES = ("data", "model", "recipe", "discover")
PLAIN = ("name", "seeds")


class DiscoveryConfig(Section):
    """Discoveries: one for every pressure and seed.

    Attributes:
        name: of the folder, ``runs/NAME`` unless told otherwise.
        data, model: which, with options.
        recipe: of the training.
        pressures: alike but for ``nu``.
        seeds: trainings at each pressure.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    data: Named
    model: Named
    recipe: Recipe
    pressures: tuple[Pressure, ...]
    seeds: Count = 1


def read_discovery_file(path: str | Path, changes: Iterable[str] = ()) -> DiscoveryConfig:
    """Return what a TOML file asks for, defaults filled in; some keys may be set anew, see `changed`.

    Raises:
        UserError: one line for each mistake in the file.
    """
    path = Path(path)
    raw = changed(read_toml(path, "discovery file", "sweeps/digits-discover.toml"), changes)
    return resolve_discovery(raw, str(path), path.stem)


def resolve_discovery(
    raw: Mapping[str, Any], source: str = "discovery", default_name: str = "discovery"
) -> DiscoveryConfig:
    """Return what a parsed TOML file (a plain dict) asks for; see `read_discovery_file`."""
    checker = SweepChecker(source)
    checker.names(raw, (*PLAIN, *TABLES))
    raw = checker.tables(raw, TABLES, ("data", "model"), "a discovery")
    data = checker.named("data", raw, DATASETS, "data set", given=())
    model = checker.named("model", raw, MODELS, "model", given=GIVEN)
    recipe = checker.recipe(raw, data)
    pressures = _pressures(checker, dict(raw.get("discover", {})))
    UserError.collect(checker.mistakes)
    assert data is not None  # or a mistake had been found
    assert model is not None
    assert recipe is not None
    rest = {"name": raw.get("name", default_name), "seeds": raw.get("seeds", 1)}
    try:
        return DiscoveryConfig(data=data, model=model, recipe=recipe, pressures=pressures, **rest)
    except ValidationError as error:
        raise UserError(
            *(f"{source}: {each['loc'][0]}: {each['msg']}, got {each['input']!r}" for each in error.errors())
        ) from error


def _pressures(checker: SweepChecker, table: dict[str, Any]) -> tuple[Pressure, ...]:
    nu = table.pop("nu", Pressure().nu)
    values = checker.axis("discover.nu", nu) if isinstance(nu, list) else [nu]
    found = [checker.table(Pressure, "discover", {**table, "nu": value}) for value in values]
    names = [checker.known("discover.estimator", each.estimator, ESTIMATORS, "estimator") for each in found[:1] if each]
    if any(name is None for name in names):
        return ()
    for each in found[:1]:
        if each is not None and each.too_short:
            checker.say("discover.settle", each.too_short)
    return tuple(each for each in found if each is not None)
