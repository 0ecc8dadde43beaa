"""Image folders: ``ROOT/train/CLASS/*.jpg`` and ``ROOT/test/CLASS/*.jpg``, and TinyImageNet in its own layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from regimes.data.dataset import Dataset
from regimes.data.images import Pair, balanced_indices, decode_images, from_bytes
from regimes.errors import UserError
from regimes.torchvision_import import torchvision


def imagefolder(
    root: str,
    images: int = 0,
    test_images: int = 0,
    val_fraction: float = 0.1,
    title: str = "",
    size: int = 0,
) -> Dataset:
    """Return images (n, 3, h, w) of one size, each channel standardised by the training split.

    Args:
        root: folder with ``train/``, ``test/`` and optionally ``val/``, each with one folder per class.
        images: number of training images to use, balanced over classes, including those held out for validation; 0:
            all.
        test_images: number of test images to use, balanced over classes; 0: all.
        val_fraction: fraction of each class of the training images held out if there is no ``val/``.
        title: caption; "": the folder's name, with the numbers of images and the size if they are given.
        size: side in pixels of the squares that the images are cropped and reduced to; 0: as they are.

    Raises:
        UserError: a folder is missing, the splits have different classes, or images differ in size and ``size`` is 0.
    """
    folder = Path(root)
    train, classes = _read(folder, "train", images, size)
    test, test_classes = _read(folder, "test", test_images, size)
    val, val_classes = _read(folder, "val", 0, size) if (folder / "val").is_dir() else (None, classes)
    if not classes == test_classes == val_classes:
        raise UserError(f"data.root = '{root}': train, test and val must have the same class folders")
    name, reduced = (title, (0, 0, 0)) if title else (folder.resolve().name, (images, test_images, size))
    return from_bytes(train, test, val, len(classes), name, val_fraction, reduced)


def tinyimagenet(root: str, images: int = 0, test_images: int = 0, val_fraction: float = 0.1, size: int = 0) -> Dataset:
    """Return TinyImageNet (200 classes, 64x64 pixels); its labelled ``val/`` images are used as the test split.

    Args:
        root: folder with ``train/CLASS/images/*.JPEG``, ``val/images/*.JPEG`` and ``val/val_annotations.txt``, as in
            the published archive.
        images: number of training images to use, balanced over classes, including those held out for validation; 0:
            all.
        test_images: number of test images to use, balanced over classes; 0: all.
        val_fraction: fraction of each class of the training images that is held out for validation.
        size: side in pixels that the images are reduced to; 0: as they are.

    Raises:
        UserError: a file or folder is missing.
    """
    folder = Path(root)
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file() or not (folder / "train").is_dir():
        raise UserError(
            f"data.root = '{root}': no TinyImageNet in this folder; "
            f"expected {root}/train/CLASS/images/*.JPEG and {annotations}"
        )
    names = sorted(each.name for each in (folder / "train").iterdir() if each.is_dir())
    label = {name: number for number, name in enumerate(names)}
    known = [(path, label[name]) for name in names for path in sorted((folder / "train" / name / "images").iterdir())]
    judged = []
    for line in annotations.read_text().splitlines():
        name, category = line.split("\t")[:2]
        judged.append((folder / "val" / "images" / name, label[category]))
    train, test = (_decoded(files, count, root, size) for files, count in ((known, images), (judged, test_images)))
    return from_bytes(train, test, None, len(names), "TinyImageNet", val_fraction, (images, test_images, size))


def _read(root: Path, split: str, count: int, size: int) -> tuple[Pair, list[str]]:
    if not (root / split).is_dir():
        raise UserError(f"data.root = '{root}': no folder {split}/ in it; expected {root}/{split}/CLASS/IMAGE.jpg")
    found: Any = torchvision().datasets.ImageFolder(str(root / split))
    files = [(Path(path), label) for path, label in found.samples]
    return _decoded(files, count, f"{root}/{split}", size), found.classes


def _decoded(files: list[tuple[Path, int]], count: int, where: str, size: int) -> Pair:
    labels = np.array([label for _, label in files])
    chosen = balanced_indices(labels, count) if count else np.arange(len(labels))
    load: Callable[[str], Any] = torchvision().datasets.folder.default_loader  # RGB, whatever the file holds
    paths = [files[index][0] for index in chosen]
    return decode_images(paths, load, f"data.root = '{where}'", size), labels[chosen]
