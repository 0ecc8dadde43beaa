"""Data sets of uint8 images, and a cache of decoded image files that is shared by all processes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regimes.data.dataset import Dataset, Split, held_out_mask
from regimes.data.uint8_images import Uint8Images, channel_statistics
from regimes.errors import UserError

Pair = tuple[np.ndarray, Any]  # bytes (m, c, h, w) and a label for each


def from_bytes(
    train: Pair,
    test: Pair,
    val: Pair | None,
    classes: int,
    title: str,
    val_fraction: float = 0.1,
    reduced: tuple[int, int, int] = (0, 0, 0),
) -> Dataset:
    """Return a data set of images stored as bytes, each channel standardised by the training images.

    Args:
        train, test: bytes (m, c, h, w) and labels (m,).
        val: bytes and labels of the validation split; None: a part of the training images is held out.
        classes: number of classes.
        title: name for captions.
        val_fraction: fraction of each class held out if ``val`` is None; the draw is the same on every machine.
        reduced: (training images, test images, size) as asked for, 0: all images, or their own size; the title states
            the others.

    Raises:
        UserError: images of different size, or a fraction outside (0, 1).
    """
    sizes = {tuple(pair[0].shape[1:]) for pair in (train, test, val or test)}
    if len(sizes) > 1:
        raise UserError(f"data set '{title}': images of different size in its splits: {sorted(sizes)}")
    every = np.arange(len(train[1]))
    rows = {"train": every, "test": np.arange(len(test[1]))}
    if val is None:
        out = held_out_mask(np.asarray(train[1]), val_fraction, seed=0)
        val, rows["train"], rows["val"] = train, every[~out], every[out]
    else:
        rows["val"] = np.arange(len(val[1]))
    mean, deviation = channel_statistics(train[0], rows["train"])
    named = {"train": train, "val": val, "test": test}
    splits = {
        name: _split(Uint8Images(*_tensors(images, rows[name]), mean, deviation), np.asarray(labels)[rows[name]])
        for name, (images, labels) in named.items()
    }
    images, test_images, size = reduced
    parts = [f"{len(splits['train'].targets):,} training images"] if images else []
    parts += [f"{len(splits['test'].targets):,} test images"] if test_images else []
    parts += [f"resized to {size}x{size}"] if size else []
    return Dataset(splits["train"], splits["val"], splits["test"], classes, ", ".join([title, *parts]))


def decode_images(files: Sequence[Path], load: Callable[[str], Any], what: str, size: int = 0) -> np.ndarray:
    """Return the bytes (n, c, h, w) of image files, memory-mapped from a cache file that the first call writes.

    Decoding takes longer than a training epoch of a small network, so it is done once for all workers. The cache file
    is in ``$XDG_CACHE_HOME/regimes`` (default ``~/.cache/regimes``), is identified by the paths, sizes and modification
    times of the images and the size they are reduced to, and may be deleted at any time.

    Args:
        files: image files, of equal size unless ``size`` is given.
        load: path -> PIL image.
        what: location of the files, for error messages.
        size: side in pixels of the squares they are cropped and reduced to; 0: as they are.

    Raises:
        UserError: no files, a file that cannot be read, or images of different size.
    """
    if not files:
        raise UserError(f"{what}: no images in this folder")
    digest = hashlib.sha256(f"size {size}\n".encode() if size else b"")
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regimes"
    kept = folder / f"{digest.hexdigest()[:24]}.npy"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        first = _bytes(load, files[0], size)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
            shape = (len(files), first.shape[2], *first.shape[:2])
        try:
            bytes_ = np.lib.format.open_memmap(part.name, mode="w+", dtype=np.uint8, shape=shape)
            for number, file in enumerate(files):
                image = _bytes(load, file, size)
                if image.shape != first.shape:
                    raise UserError(
                        f"{what}: images of different size, {first.shape[:2]} and {image.shape[:2]} ({file.name}); "
                        "set data.size = N to crop and resize them to N x N pixels"
                    )
                bytes_[number] = image.transpose(2, 0, 1)
            bytes_.flush()
            os.replace(part.name, kept)
        finally:
            Path(part.name).unlink(missing_ok=True)
    mapped: np.ndarray = np.load(kept, mmap_mode="c")
    return mapped


def resized(image: Any, size: int) -> Any:
    """Return a PIL image, cropped to a centred square and reduced to ``size`` x ``size`` pixels by averaging if not 0.

    Raises:
        UserError: the size is no number of pixels, or larger than the image.
    """
    from PIL import Image, ImageOps

    if not isinstance(size, int) or not 0 <= size <= min(image.size):
        raise UserError(
            f"data.size = {size}: allowed is a whole number of pixels up to the images' shorter side, "
            f"{min(image.size)}; 0 leaves them as they are"
        )
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BOX) if size else image


def resized_bytes(images: np.ndarray, size: int) -> np.ndarray:
    """Return images (n, 3, h, w) as bytes, `resized`."""
    from PIL import Image

    if not size:
        return images
    made = [np.asarray(resized(Image.fromarray(each), size)) for each in images.transpose(0, 2, 3, 1)]
    return np.ascontiguousarray(np.stack(made).transpose(0, 3, 1, 2))


def balanced_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of ``count`` images, balanced over classes: the first ones of each class."""
    place = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, place))[:count])


def _bytes(load: Callable[[str], Any], file: Path, size: int) -> np.ndarray:
    try:
        if not file.is_file():
            raise OSError("not a regular file")
        return np.asarray(resized(load(str(file)), size))
    except OSError as error:
        raise UserError(f"{file}: cannot read this image: {error}; replace or remove it") from error


def _tensors(images: np.ndarray, rows: np.ndarray) -> tuple[Any, Any]:
    import torch

    return torch.from_numpy(np.asarray(images)), torch.from_numpy(rows)


def _split(inputs: Uint8Images, labels: np.ndarray) -> Split:
    import torch

    return Split(inputs, torch.from_numpy(labels.astype(np.int64)))
