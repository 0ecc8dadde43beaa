"""CIFAR-10, CIFAR-100 and SVHN, read from their published files by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regimes.data.dataset import Dataset
from regimes.data.images import Pair, balanced_indices, from_bytes, resized_bytes
from regimes.errors import UserError
from regimes.torchvision_import import torchvision


def cifar10(
    root: str = "data",
    images: int = 0,
    test_images: int = 0,
    val_fraction: float = 0.1,
    download: bool = False,
    size: int = 0,
) -> Dataset:
    """Return CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in ten classes.

    Args:
        root: folder that contains ``cifar-10-batches-py/``.
        images: number of training images to use, balanced over classes, including those held out for validation; 0:
            all.
        test_images: number of test images to use, balanced over classes; 0: all.
        val_fraction: fraction of each class of the training images that is held out for validation.
        download: whether to download missing files from the authors' site.
        size: side in pixels that the images are reduced to by averaging; 0: as they are.

    Raises:
        UserError: the files are missing or incomplete.
    """
    return _cifar("CIFAR10", "CIFAR-10", "cifar-10-batches-py", root, images, test_images, val_fraction, download, size)


def cifar100(
    root: str = "data",
    images: int = 0,
    test_images: int = 0,
    val_fraction: float = 0.1,
    download: bool = False,
    size: int = 0,
) -> Dataset:
    """Return CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in a hundred classes.

    ``root`` contains ``cifar-100-python/``; the other arguments are those of `cifar10`.
    """
    return _cifar("CIFAR100", "CIFAR-100", "cifar-100-python", root, images, test_images, val_fraction, download, size)


def svhn(
    root: str = "data",
    images: int = 0,
    test_images: int = 0,
    val_fraction: float = 0.1,
    download: bool = False,
    size: int = 0,
) -> Dataset:
    """Return SVHN, cropped digits: 73,257 training and 26,032 test images of 32x32 pixels in ten classes.

    ``root`` contains ``train_32x32.mat`` and ``test_32x32.mat``; the other arguments are those of `cifar10`.
    """
    parts = []
    for split, count in (("train", images), ("test", test_images)):
        found = _open("SVHN", "SVHN", f"{split}_32x32.mat", root, download, split=split)
        parts.append(_some(found.data, found.labels, count, size))
    return from_bytes(parts[0], parts[1], None, 10, "SVHN", val_fraction, (images, test_images, size))


def _cifar(
    kind: str,
    title: str,
    folder: str,
    root: str,
    images: int,
    test_images: int,
    val_fraction: float,
    download: bool,
    size: int,
) -> Dataset:
    parts = []
    for train, count in ((True, images), (False, test_images)):
        found = _open(kind, title, folder, root, download, train=train)
        parts.append(_some(found.data.transpose(0, 3, 1, 2), np.array(found.targets), count, size))
    reduced = (images, test_images, size)
    return from_bytes(parts[0], parts[1], None, len(found.classes), title, val_fraction, reduced)


def _open(kind: str, title: str, expected: str, root: str, download: bool, **split: Any) -> Any:
    try:
        return getattr(torchvision().datasets, kind)(root, download=download, **split)
    except (RuntimeError, OSError) as error:
        where = Path(root) / expected
        state = "is incomplete" if where.exists() else "does not exist"
        how = f"the download failed: {error}" if download else "add it, set another root, or set download = true"
        raise UserError(f"data.root = '{root}': {title} needs {where}, which {state}; {how}") from error


def _some(images: np.ndarray, labels: np.ndarray, count: int, size: int) -> Pair:
    chosen = balanced_indices(labels, count) if count else np.arange(len(labels))
    return resized_bytes(np.ascontiguousarray(images[chosen]), size), labels[chosen].astype(np.int64)
