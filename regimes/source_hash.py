"""Which files a user's module consists of: itself, and what it imports from its own folder, read without running it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path


def imported_sources(file: str) -> list[Path]:
    """Return a Python file and, through its import statements, every file of the same folder that it rests on."""
    start = Path(file).resolve()
    folder = start.parent
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _names(path):
            beside = (folder / f"{name}.py", folder / name / "__init__.py")
            waiting += [each for each in beside if each.is_file()]
            waiting += sorted((folder / name).glob("**/*.py")) if (folder / name / "__init__.py").is_file() else []
    return sorted(found)


def _names(path: Path) -> set[str]:
    """Top-level names that a file imports; relative imports by the name behind the dots."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module.partition(".")[0]} if node.module else {each.name for each in node.names}
    return names


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the contents of files, whatever folder they stand in."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
