"""Names to import paths: the one way in which knobs, data sets, models, pruners, metrics and rules are found.

A registry is a plain dict ``{"short name": "package.module:attribute"}``. Wherever a short name is allowed, an import
path of the user's own is allowed too. Nothing is imported before it is asked for, so reading a registry costs nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from regimes.errors import UserError

Registry = Mapping[str, str]


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
        return _import(registry[name], what)
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
    except Exception as error:  # a user's module may raise anything while it is imported
        raise UserError(f"cannot import {what} '{path}': {type(error).__name__}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = [each for each in vars(module) if not each.startswith("_")]
        hint = nearest(attribute, public)
        raise UserError(f"cannot import {what} '{path}': {module_name} has no '{attribute}'{hint}") from error


def allow_imports_from(folder: str) -> None:
    """Let a user's own modules beside a sweep file be imported, as they would be by ``python FILE``."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def source_id(registry: Registry, name: str, what: str) -> str | None:
    """Return a hash of the source file behind a user's import path, so that an edited function makes new cells.

    Names of this package return None: they are versioned by the schema number of their stage instead.
    """
    if name in registry:
        return None
    file = inspect.getsourcefile(inspect.unwrap(load(registry, name, what)))
    if file is None:
        return None
    with open(file, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()[:16]


def options_of(function: Any, given: Iterable[str]) -> list[str] | None:
    """Return the keyword options a function takes beside those ``given`` by the engine; None when it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return None
    skipped = set(given)
    return [each.name for each in parameters if each.name not in skipped]
