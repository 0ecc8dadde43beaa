"""Reader of discovery files (``regimes discover``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from regimes.config.check_load_axis import check_discovery_loop
from regimes.config.discovery import Pressure
from regimes.config.overrides import apply_overrides
from regimes.config.recipe import Count, Name, Recipe, Section
from regimes.config.sweep import Named
from regimes.config.sweep_file import SweepChecker, read_toml
from regimes.data import DATASETS
from regimes.discovery import ESTIMATORS
from regimes.errors import UserError
from regimes.models import BUILDER_ARGUMENTS, MODELS

TABLES = ("data", "model", "recipe", "discover")
PLAIN = ("name", "seeds")
MAX_TRAININGS = 100_000


class DiscoveryConfig(Section):
    """A discovery file: one training for every pressure and seed.

    Attributes:
        name: the name of the discovery; the default folder is ``runs/NAME``.
        data, model: names and options.
        recipe: the training recipe.
        pressures: the pressures, which differ in ``nu`` only.
        seeds: the number of trainings at each pressure.
    """

    name: Name
    data: Named
    model: Named
    recipe: Recipe
    pressures: tuple[Pressure, ...]
    seeds: Count = 1


def read_discovery_file(path: str | Path, changes: Iterable[str] = ()) -> DiscoveryConfig:
    """Read a discovery file, apply overrides (see `apply_overrides`) and fill in defaults.

    Raises:
        UserError: one line for each error in the file.
    """
    path = Path(path)
    raw = apply_overrides(read_toml(path, "discovery file", "sweeps/digits-discover.toml"), changes)
    return resolve_discovery(raw, str(path), path.stem)


def resolve_discovery(
    raw: Mapping[str, Any], source: str = "discovery", default_name: str = "discovery"
) -> DiscoveryConfig:
    """Validate a parsed discovery file (a plain dict); see `read_discovery_file`."""
    checker = SweepChecker(source)
    checker.check_names(raw, (*PLAIN, *TABLES))
    raw = checker.check_tables(raw, TABLES, ("data", "model"), "a discovery")
    data = checker.named("data", raw, DATASETS, "data set", given=())
    model = checker.named("model", raw, MODELS, "model", given=BUILDER_ARGUMENTS)
    recipe = checker.recipe(raw, data)
    check_discovery_loop(checker, recipe)
    pressures = _pressures(checker, dict(raw.get("discover", {})))
    UserError.collect(checker.errors)
    found = {"data": data, "model": model, "recipe": recipe, "pressures": pressures, "seeds": raw.get("seeds", 1)}
    config: DiscoveryConfig = checker.validate(DiscoveryConfig, "", {"name": raw.get("name", default_name), **found})
    UserError.collect(checker.errors)
    if (count := len(config.pressures) * config.seeds) > MAX_TRAININGS:
        raise UserError(f"{source}: {count:,} trainings; allowed: {MAX_TRAININGS:,}; use fewer seeds or values of nu")
    return config


def _pressures(checker: SweepChecker, table: dict[str, Any]) -> tuple[Pressure, ...]:
    nu = table.pop("nu", Pressure().nu)
    values = checker.check_list("discover.nu", nu) if isinstance(nu, list) else [nu]
    pressures = [checker.validate(Pressure, "discover", {**table, "nu": value}) for value in values]
    first: Pressure | None = next(iter(pressures), None)  # they differ in nu only
    if first is not None:
        if checker.resolve_name("discover.estimator", first.estimator, ESTIMATORS, "estimator") is None:
            return ()
        if first.settle_error:
            checker.add_error("discover.settle", first.settle_error)
    return tuple(pressure for pressure in pressures if pressure is not None)
