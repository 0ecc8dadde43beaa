"""Lazy registries: short names of knobs, data sets, models, pruners, metrics, rules etc., mapped to import paths.

A registry is a plain dict ``{"short name": "package.module:attribute"}``. Wherever a short name is allowed, an import
path of your own is allowed too. Objects are imported only when they are looked up.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import sysconfig
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from regimes.errors import UserError
from regimes.source_hash import fingerprint, imported_sources
from regimes.torchvision_import import is_missing_operator, torchvision

Registry = Mapping[str, str]
_SEEN: dict[str, str] = {}  # {file of a user's module: fingerprint of its sources at import}


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(str(name)[:100], list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def lookup(registry: Registry, name: str, what: str) -> Any:
    """Return the object with a short name or an import path.

    Args:
        registry: {short name: import path}.
        name: a short name in the registry, or an import path ``package.module:attribute``.
        what: kind of object, for error messages.

    Raises:
        UserError: the name is neither in the registry nor an import path, the module is one of Python's standard
            library (importing some of them opens windows or waits for input), or the import fails.
    """
    if name in registry:
        module, _, attribute = registry[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if ":" in name:
        return _import(name, what)
    raise UserError(
        f"unknown {what} '{name}'{nearest(name, registry)}; "
        f"allowed: {', '.join(sorted(registry))}, or an import path 'package.module:attribute'"
    )


def _import(path: str, what: str) -> Any:
    module_name, _, attribute = path.partition(":")
    parts = module_name.split(".")
    if not all(each.isidentifier() for each in (*parts, attribute)) or "__main__" in parts:
        raise UserError(f"cannot import {what} '{path}': not an import path 'package.module:attribute'")
    allow_imports_from(os.getcwd())
    if parts[0] in sys.stdlib_module_names and not _is_own(parts[0]):
        raise UserError(f"cannot import {what} '{path}': {parts[0]} is a module of Python's standard library")
    try:
        module = _import_module(module_name)
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"cannot import {what} '{path}': {type(error).__name__}: {reason}") from error
    _check_current(module_name, module)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = [each for each in vars(module) if not each.startswith("_")]
        hint = nearest(attribute, public)
        raise UserError(f"cannot import {what} '{path}': {module_name} has no '{attribute}'{hint}") from error


def _is_own(name: str) -> bool:
    """Whether a module with a name of the standard library is found elsewhere first, e.g. beside the description."""
    found = importlib.machinery.PathFinder.find_spec(name)
    if found is None or found.origin is None:
        return False
    library = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return not any(Path(found.origin).is_relative_to(folder) for folder in library)


def _import_module(name: str) -> Any:
    """Import a user's module; one that imports torchvision also where that needs `torchvision_import`."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if not is_missing_operator(error):
            raise
    torchvision()
    return importlib.import_module(name)


def _check_current(name: str, module: Any) -> None:
    """Refuse an imported module whose file has changed since, or which is now found in another file.

    Its key would be computed from the new file, its results by the old code.
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
    """Put a folder first on ``sys.path``, as ``python FILE`` does, so that modules next to a sweep file are found."""
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)


def source_id(registry: Registry, name: str, what: str) -> str | None:
    """Return a hash of the source code of a user's import path, so that editing the code changes the keys.

    The hash covers the module's file and the files it imports from the same folder. It is None for short names, which
    are versioned by the schema number of their stage, and for installed packages.
    """
    if name in registry:
        return None
    lookup(registry, name, what)
    file = importlib.import_module(name.partition(":")[0]).__file__
    if file is None or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None  # an installed package is identified by its name
    return fingerprint(imported_sources(file))


def with_defaults(function: Any, options: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Return the options completed by the function's defaults, so that keys cover the values actually used.

    Defaults that are not plain data (not expressible in TOML) are left out.

    Args:
        function: any callable.
        options: the options set by the user.
        given: names of the arguments that the engine passes; they are left out.
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
    """Return the options of a function, apart from the arguments ``given`` by the engine.

    Returns:
        Names of all options, or None if the function takes any option or its signature is not available; and names of
        the required ones.
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


def types_of(function: Any) -> dict[str, Any]:
    """Return the types of a function's arguments: their annotations, or else those of boolean and numeric defaults."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    found = {name: _type_of(function, each) for name, each in parameters.items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def _type_of(function: Any, parameter: inspect.Parameter) -> Any:
    by_default = {bool: bool, int: float, float: float}.get(type(parameter.default))  # an integer is also a float
    if parameter.annotation is parameter.empty:
        return by_default
    names = getattr(inspect.unwrap(function.__init__ if inspect.isclass(function) else function), "__globals__", {})
    alone = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return typing.get_type_hints(alone, names)["it"]
    except Exception:  # with names that exist for type checkers only, or not at all
        return by_default


def call_strictly(function: Any, options: Mapping[str, Any]) -> Any:
    """Call a function with options from a file; a boolean must be one, since Python takes any string for true.

    Raises:
        TypeError: the value of a boolean option is not a boolean, or what the function raises.
    """
    for name, kind in types_of(function).items():
        allowed = tuple(each for each in (kind, *typing.get_args(kind)) if isinstance(each, type))
        if name in options and bool in allowed and not isinstance(options[name], allowed):
            raise TypeError(f"{name} must be true or false, got {options[name]!r}")
    return function(**options)
