"""CIFAR-10, CIFAR-100 and SVHN in the files that their authors publish, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regimes.data.dataset import Dataset
from regimes.data.images import Pair, balanced, from_bytes
from regimes.data.torchvision_import import torchvision
from regimes.errors import UserError


def cifar10(
    root: str = "data", images: int = 0, test_images: int = 0, val_fraction: float = 0.1, download: bool = False
) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32, ten classes.

    Args:
        root: folder in which ``cifar-10-batches-py/`` stands.
        images: training images to take, the same number of each class, held-out ones included; 0: all.
        test_images: likewise of the test images.
        val_fraction: share of each class of the training images that is held out for choices.
        download: fetch what is missing from the author's site.

    Raises:
        UserError: the files are not there, or are not whole.
    """
    return _cifar("CIFAR10", "CIFAR-10", "cifar-10-batches-py", root, images, test_images, val_fraction, download)


def cifar100(
    root: str = "data", images: int = 0, test_images: int = 0, val_fraction: float = 0.1, download: bool = False
) -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test images, 32x32, a hundred classes; see `cifar10` for the arguments.

    Its folder is ``cifar-100-python/``.
    """
    return _cifar("CIFAR100", "CIFAR-100", "cifar-100-python", root, images, test_images, val_fraction, download)


def svhn(
    root: str = "data", images: int = 0, test_images: int = 0, val_fraction: float = 0.1, download: bool = False
) -> Dataset:
    """SVHN, cropped digits: 73,257 training and 26,032 test images, 32x32, ten classes; see `cifar10`.

    Its files are ``train_32x32.mat`` and ``test_32x32.mat``.
    """
    parts = []
    for split, count in (("train", images), ("test", test_images)):
        found = _open("SVHN", "SVHN", f"{split}_32x32.mat", root, download, split=split)
        parts.append(_some(np.ascontiguousarray(found.data), found.labels, count))
    return from_bytes(parts[0], parts[1], None, 10, "SVHN", val_fraction)


def _cifar(
    kind: str, title: str, folder: str, root: str, images: int, test_images: int, val_fraction: float, download: bool
) -> Dataset:
    parts = []
    for train, count in ((True, images), (False, test_images)):
        found = _open(kind, title, folder, root, download, train=train)
        parts.append(_some(np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)), np.array(found.targets), count))
    return from_bytes(parts[0], parts[1], None, len(found.classes), title, val_fraction)


def _open(kind: str, title: str, expected: str, root: str, download: bool, **split: Any) -> Any:
    try:
        return getattr(torchvision().datasets, kind)(root, download=download, **split)
    except (RuntimeError, OSError) as error:
        where = Path(root) / expected
        state = "is not whole" if where.exists() else "is not there"
        how = f"the download failed: {error}" if download else "put it there, name another root, or set download = true"
        raise UserError(f"data.root = '{root}': {title} expects {where}, which {state}; {how}") from error


def _some(images: np.ndarray, labels: np.ndarray, count: int) -> Pair:
    chosen = balanced(labels, count) if count else np.arange(len(labels))
    return images[chosen], labels[chosen].astype(np.int64)
