"""Names to import paths: the one way in which knobs, data sets, models, pruners, metrics and rules are found.

A registry is a plain dict ``{"short name": "package.module:attribute"}``. Wherever a short name is allowed, an import
path of the user's own is allowed too. Nothing is imported before it is asked for, so reading a registry costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from regimes.errors import UserError
from regimes.source_hash import fingerprint, imported_sources

Registry = Mapping[str, str]
_SEEN: dict[str, str] = {}  # {user module: fingerprint of its sources when it was imported}


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def load(registry: Registry, name: str, what: str) -> Any:
    """Return the object behind a short name or an import path.

    Raises:
        UserError: the name is in no registry and is no import path, or the import fails; says what is allowed.
    """
    if name in registry:
        module, _, attribute = registry[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if ":" in name:
        return _import(name, what)
    raise UserError(
        f"unknown {what} '{name}'{nearest(name, registry)}; "
        f"allowed: {', '.join(sorted(registry))}, or an import path 'package.module:function'"
    )


def _import(path: str, what: str) -> Any:
    module_name, _, attribute = path.partition(":")
    allow_imports_from(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"cannot import {what} '{path}': {type(error).__name__}: {reason}") from error
    _check_current(module_name, module)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = [each for each in vars(module) if not each.startswith("_")]
        hint = nearest(attribute, public)
        raise UserError(f"cannot import {what} '{path}': {module_name} has no '{attribute}'{hint}") from error


def _check_current(name: str, module: Any) -> None:
    """Refuse a module that Python still holds although its file has changed, or is another one by now.

    A key would be made from the new file, the numbers from the old code.
    """
    file = getattr(module, "__file__", None)
    if file is None:
        return
    found = importlib.machinery.PathFinder.find_spec(name) if "." not in name else None
    if found is not None and found.origin and not os.path.samefile(found.origin, file):
        raise UserError(f"module '{name}' is already imported from {file}, not from {found.origin}; restart Python")
    now = fingerprint(imported_sources(file))
    if _SEEN.setdefault(file, now) != now:
        raise UserError(f"{file} (or a file it imports) has changed since it was imported; restart Python")


def allow_imports_from(folder: str) -> None:
    """Let a user's own modules beside a sweep file be imported, as they would be by ``python FILE``."""
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)


def source_id(registry: Registry, name: str, what: str) -> str | None:
    """Return a hash of the source behind a user's import path, so that an edited function makes new cells.

    It covers the module's file and those it imports from its own folder. Names of this package return None: they are
    versioned by the schema number of their stage instead.
    """
    if name in registry:
        return None
    load(registry, name, what)
    file = importlib.import_module(name.partition(":")[0]).__file__
    if file is None or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None  # an installed package is known by its name
    return fingerprint(imported_sources(file))


def with_defaults(function: Any, options: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Fill in a function's own defaults, so that a key rests on what is really used, written or not.

    Defaults that are no plain data (TOML could not have said them) are left out.
    """
    parameters = inspect.signature(function).parameters
    plain = (bool, int, float, str, list, tuple, type(None))
    skipped = {*given, *options}
    defaults = {
        name: list(each.default) if isinstance(each.default, tuple) else each.default
        for name, each in parameters.items()
        if name not in skipped and each.default is not inspect.Parameter.empty and isinstance(each.default, plain)
    }
    return {**defaults, **options}


def options_of(function: Any, given: Iterable[str]) -> tuple[list[str] | None, list[str]]:
    """Return the options a function takes beside those ``given`` by the engine, and which of them it requires.

    The first is None when the function takes any option, or does not tell.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None, []
    skipped = set(given)
    named = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    required = [each.name for each in named if each.default is each.empty and each.name not in skipped]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None, required
    return [each.name for each in named if each.name not in skipped], required
