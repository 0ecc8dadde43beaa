"""Images in folders: ``ROOT/train/CLASS/*.jpg`` and ``ROOT/test/CLASS/*.jpg``; TinyImageNet as it is unpacked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from regimes.data.dataset import Dataset
from regimes.data.images import Pair, balanced, decoded, from_bytes
from regimes.data.torchvision_import import torchvision
from regimes.errors import UserError


def imagefolder(
    root: str,
    images: int = 0,
    test_images: int = 0,
    val_fraction: float = 0.1,
    title: str = "",
) -> Dataset:
    """Return images (n, 3, h, w) of one size, each channel standardised by the training split.

    Args:
        root: folder with ``train/`` and ``test/`` (``val/`` where there is one), a folder per class in each.
        images: training images to take, the same number of each class, held-out ones included; 0: all.
        test_images: likewise of the test images.
        val_fraction: share of each class of the training images that is held out, where there is no ``val/``.
        title: for captions; "": the folder's name.

    Raises:
        UserError: a folder is missing, splits have other classes, or images differ in size.
    """
    folder = Path(root)
    train, classes = _read(folder, "train", images)
    test, test_classes = _read(folder, "test", test_images)
    val, val_classes = _read(folder, "val", 0) if (folder / "val").is_dir() else (None, classes)
    if not classes == test_classes == val_classes:
        raise UserError(f"data.root = '{root}': train, test and val must have the same class folders")
    return from_bytes(train, test, val, len(classes), title or folder.resolve().name, val_fraction)


def tinyimagenet(root: str, images: int = 0, test_images: int = 0, val_fraction: float = 0.1) -> Dataset:
    """TinyImageNet (200 classes, 64x64) as its archive unpacks; its labelled ``val/`` images are the test split here.

    Args:
        root: the folder with ``train/CLASS/images/*.JPEG`` and ``val/images/*.JPEG``, ``val/val_annotations.txt``.
        images: training images to take, the same number of each class, held-out ones included; 0: all.
        test_images: likewise of the test images.
        val_fraction: share of each class of the training images that is held out for choices.

    Raises:
        UserError: a file or folder is missing.
    """
    folder = Path(root)
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file() or not (folder / "train").is_dir():
        raise UserError(
            f"data.root = '{root}': TinyImageNet is not in it; "
            f"expected {root}/train/CLASS/images/*.JPEG and {annotations}"
        )
    names = sorted(each.name for each in (folder / "train").iterdir() if each.is_dir())
    label = {name: number for number, name in enumerate(names)}
    known = [(path, label[name]) for name in names for path in sorted((folder / "train" / name / "images").iterdir())]
    judged = []
    for line in annotations.read_text().splitlines():
        name, category = line.split("\t")[:2]
        judged.append((folder / "val" / "images" / name, label[category]))
    train, test = (_decoded(files, count, root) for files, count in ((known, images), (judged, test_images)))
    return from_bytes(train, test, None, len(names), "TinyImageNet", val_fraction)


def _read(root: Path, split: str, count: int) -> tuple[Pair, list[str]]:
    if not (root / split).is_dir():
        raise UserError(f"data.root = '{root}': no folder {split}/ in it; expected {root}/{split}/CLASS/IMAGE.jpg")
    found: Any = torchvision().datasets.ImageFolder(str(root / split))
    return _decoded([(Path(path), label) for path, label in found.samples], count, f"{root}/{split}"), found.classes


def _decoded(files: list[tuple[Path, int]], count: int, where: str) -> Pair:
    labels = np.array([label for _, label in files])
    chosen = balanced(labels, count) if count else np.arange(len(labels))
    load: Callable[[str], Any] = torchvision().datasets.folder.default_loader  # RGB, whatever the file holds
    paths = [files[index][0] for index in chosen]
    return decoded(paths, lambda path: np.asarray(load(str(path))), f"data.root = '{where}'"), labels[chosen]
