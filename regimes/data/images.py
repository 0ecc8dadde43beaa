"""From bytes of images to a data set, and from image files to bytes that all processes share."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regimes.data.dataset import Dataset, Split, held_out
from regimes.data.uint8_images import Uint8Images, statistics
from regimes.errors import UserError

Pair = tuple[np.ndarray, Any]  # bytes (m, c, h, w) and a label for each


def from_bytes(
    train: Pair, test: Pair, val: Pair | None, classes: int, title: str, val_fraction: float = 0.1
) -> Dataset:
    """Return a data set of images held as bytes, channels standardised by the training images.

    Args:
        train, test: bytes (m, c, h, w) and labels (m,).
        val: likewise; None: ``val_fraction`` of each class of the training images is held out, the same everywhere.
        classes: number of classes.
        title: for captions.
        val_fraction: as said.

    Raises:
        UserError: images of different size, or a share outside (0, 1).
    """
    sizes = {tuple(pair[0].shape[1:]) for pair in (train, test, val or test)}
    if len(sizes) > 1:
        raise UserError(f"data set '{title}': images of different size in its splits: {sorted(sizes)}")
    every = np.arange(len(train[1]))
    rows = {"train": every, "test": np.arange(len(test[1]))}
    if val is None:
        out = held_out(np.asarray(train[1]), val_fraction, seed=0)
        val, rows["train"], rows["val"] = train, every[~out], every[out]
    else:
        rows["val"] = np.arange(len(val[1]))
    mean, deviation = statistics(train[0], rows["train"])
    named = {"train": train, "val": val, "test": test}
    splits = {
        name: _split(Uint8Images(*_tensors(images, rows[name]), mean, deviation), np.asarray(labels)[rows[name]])
        for name, (images, labels) in named.items()
    }
    return Dataset(splits["train"], splits["val"], splits["test"], classes, title)


def decoded(files: Sequence[Path], load: Callable[[Path], np.ndarray], what: str) -> np.ndarray:
    """Bytes (n, c, h, w) of image files, mapped from a file in the cache folder that the first call writes.

    Decoding takes longer than a training epoch of a small network, and every worker would do it: so it is done once.
    The cache is named by the paths, sizes and times of the files, stands in ``$XDG_CACHE_HOME/regimes`` (else
    ``~/.cache/regimes``), and may be deleted at any time.

    Args:
        files: of one size each.
        load: path -> (h, w, c) bytes.
        what: the files' place, for messages.

    Raises:
        UserError: no file, or files of different size.
    """
    if not files:
        raise UserError(f"{what}: no images in it")
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regimes"
    kept = folder / f"{digest.hexdigest()[:24]}.npy"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        first = load(files[0])
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
            shape = (len(files), first.shape[2], *first.shape[:2])
        try:
            bytes_ = np.lib.format.open_memmap(part.name, mode="w+", dtype=np.uint8, shape=shape)
            for number, file in enumerate(files):
                image = load(file)
                if image.shape != first.shape:
                    raise UserError(
                        f"{what}: images of different size, {first.shape[:2]} and {image.shape[:2]} ({file.name}); "
                        "bring them to one size first"
                    )
                bytes_[number] = image.transpose(2, 0, 1)
            bytes_.flush()
            os.replace(part.name, kept)
        finally:
            Path(part.name).unlink(missing_ok=True)
    mapped: np.ndarray = np.load(kept, mmap_mode="c")
    return mapped


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of ``count`` images, the first ones of all classes in turn."""
    place = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, place))[:count])


def _tensors(images: np.ndarray, rows: np.ndarray) -> tuple[Any, Any]:
    import torch

    return torch.from_numpy(np.asarray(images)), torch.from_numpy(rows)


def _split(inputs: Uint8Images, labels: np.ndarray) -> Split:
    import torch

    return Split(inputs, torch.from_numpy(labels.astype(np.int64)))  # type: ignore[arg-type]
