"""Text that every machine has: the docstrings of Python's standard library, as sequences of characters."""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from regimes.data.dataset import Dataset, Split
from regimes.errors import UserError

# Left out: tests, packages that some distributions of Python do not install, and generated files.
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils", "encodings")
SHARES = {"train": 0.6, "val": 0.8, "test": 1.0}  # upper end of each split's share of the files
SHORTEST = 40  # characters of the shortest docstring used


def stdlib_text(
    train: int = 2000, val: int = 500, test: int = 1000, length: int = 32, vocabulary: int = 64, seed: int = 0
) -> Dataset:
    """Return sequences of characters from docstrings of Python's standard library; the target is the next character.

    Inputs (n, length) and targets (n, length) are numbers of characters. The text is read from the source files of the
    Python that runs, so it differs between versions of Python, which the title names. A file belongs to one split,
    by a hash of its name and the seed: 60 % training, 20 % validation, 20 % test files. The docstrings of a file follow
    each other, those that occurred before (in any split) left out, and files are read in the order of their hashes
    until there is enough text. Sequences do not overlap.

    Args:
        train, val, test: number of sequences in each split.
        length: characters of a sequence.
        vocabulary: number of different characters: the most common ones of the training text, and one for all others.
        seed: seed of the assignment of files to splits.

    Raises:
        UserError: an option below its minimum, no source files, or too little text in them.
    """
    counts = {"train": train, "val": val, "test": test}
    for name, value, least in (*((each, number, 1) for each, number in counts.items()), ("length", length, 2)):
        if value < least:
            raise UserError(f"stdlib-text: {name} = {value}: allowed: {least} or more")
    if vocabulary < 2:
        raise UserError(f"stdlib-text: vocabulary = {vocabulary}: allowed: 2 or more")
    seen: set[str] = set()
    texts = {}
    for name, count in counts.items():
        texts[name] = text_of(split_files(name, seed), count * length + 1, seen)
        if len(texts[name]) <= count * length:
            most = max(0, len(texts[name]) - 1) // length
            raise UserError(f"stdlib-text: {name} = {count}: this Python has text for {most} sequences of {length}")
    numbers = character_numbers(texts["train"], vocabulary)
    splits = {name: sequences(texts[name], numbers, length) for name in counts}
    characters = sum(counts.values()) * length
    title = f"docstrings of Python {platform.python_version()}, {characters:,} characters"
    return Dataset(splits["train"], splits["val"], splits["test"], vocabulary, title)


def split_files(split: str, seed: int = 0) -> list[Path]:
    """Return the source files of a split, "train", "val" or "test", in the order in which they are read.

    Raises:
        UserError: the standard library has no source files here.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [each for each in sorted(sys.stdlib_module_names) if each not in LEFT_OUT]
    found = [path for each in names for path in (root / f"{each}.py", *sorted((root / each).rglob("*.py")))]
    files = [path for path in found if path.is_file() and not set(path.relative_to(root).parts) & set(LEFT_OUT)]
    if not files:
        raise UserError(f"stdlib-text: no source files of Python's standard library in {root}; use another Python")
    places = {path: _place(path.relative_to(root).as_posix(), seed) for path in files}
    ends = list(SHARES.values())
    high = SHARES[split]
    low = ends[ends.index(high) - 1] if ends.index(high) else 0.0
    return sorted((path for path in files if low <= places[path] < high), key=lambda path: places[path])


def _place(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on a file's name and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big") / 2**48


def text_of(files: list[Path], characters: int, seen: set[str]) -> str:
    """Return the docstrings of files, at most a number of characters of them.

    Args:
        files: source files.
        characters: length at which reading ends.
        seen: docstrings to leave out; those returned are added.
    """
    parts, size = [], 0
    for file in files:
        for each in docstrings(file):
            if len(each) < SHORTEST or each in seen:
                continue
            seen.add(each)
            parts.append(each + "\n\n")
            size += len(parts[-1])
        if size >= characters:
            break
    return "".join(parts)[:characters]


def docstrings(file: Path) -> Iterator[str]:
    """Yield the docstrings of a source file without their indentation; none if it cannot be parsed."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def character_numbers(text: str, vocabulary: int) -> dict[str, int]:
    """Return {character: number} of the ``vocabulary - 1`` most common characters, sorted, from 1; 0 is any other."""
    common = sorted(Counter(text).items(), key=lambda pair: (-pair[1], pair[0]))[: vocabulary - 1]
    return {character: number for number, character in enumerate(sorted(each for each, _ in common), start=1)}


def sequences(text: str, numbers: dict[str, int], length: int) -> Split:
    """Return consecutive sequences of a text as inputs, and as targets the same moved by one character."""
    coded = torch.tensor([numbers.get(each, 0) for each in text])

    def rows(values: Tensor) -> Tensor:
        return values[: len(values) // length * length].reshape(-1, length).contiguous()

    return Split(rows(coded[:-1]), rows(coded[1:]))
