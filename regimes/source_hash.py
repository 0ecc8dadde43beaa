"""Source files of a user's module: itself and its imports from the same folder, files without running it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path


def imported_sources(file: str) -> list[Path]:
    """Return a Python file and all files of its folder that it imports, directly or indirectly."""
    start = Path(file).resolve()
    folder = start.parent
    files: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files.add(path)
        for name in _names(path):
            candidates = (folder / f"{name}.py", folder / name / "__init__.py")
            waiting += [each for each in candidates if each.is_file()]
            waiting += sorted((folder / name).glob("**/*.py")) if (folder / name / "__init__.py").is_file() else []
    return sorted(files)


def _names(path: Path) -> set[str]:
    """Top-level names that a file imports; for relative imports, the name after the dots."""
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
    """Return a hash of the names and contents of files, independent of their folder."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
