"""Images in folders: ``ROOT/train/CLASS/*.jpg`` and ``ROOT/test/CLASS/*.jpg``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from regimes.data.dataset import Dataset, Split, hold_out
from regimes.data.vision import torchvision
from regimes.errors import UserError


def imagefolder(
    root: str,
    images: int = 0,
    test_images: int = 0,
    val_fraction: float = 0.1,
    title: str = "",
) -> Dataset:
    """Return images of one size as float32 (n, 3, h, w), each channel standardised by the training split.

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
    if (folder / "val").is_dir():
        val, val_classes = _read(folder, "val", 0)
    else:
        (train, val), val_classes = hold_out(train, val_fraction, seed=0), classes
    sizes = {split.inputs.shape[1:] for split in (train, val, test)}
    if len(sizes) > 1:
        raise UserError(f"data.root = '{root}': images of different size in its splits, e.g. {sorted(sizes)[:2]}")
    if not classes == test_classes == val_classes:
        raise UserError(f"data.root = '{root}': train, test and val must have the same class folders")
    mean = train.inputs.mean(dim=(0, 2, 3), keepdim=True)
    deviation = train.inputs.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)  # a channel may be constant
    train, val, test = (Split((each.inputs - mean) / deviation, each.targets) for each in (train, val, test))
    return Dataset(train, val, test, classes=len(classes), title=title or folder.resolve().name)


def _read(root: Path, split: str, count: int) -> tuple[Split, list[str]]:
    import torch

    if not (root / split).is_dir():
        raise UserError(f"data.root = '{root}': no folder {split}/ in it; expected {root}/{split}/CLASS/IMAGE.jpg")
    found: Any = torchvision().datasets.ImageFolder(str(root / split))
    labels = np.array(found.targets)
    chosen = _balanced(labels, count) if count else np.arange(len(labels))
    pixels = [_pixels(found.loader, found.samples[index][0]) for index in chosen]
    sizes = {each.shape for each in pixels}
    if len(sizes) > 1:
        raise UserError(f"data.root = '{root}': images of different size in {split}/, e.g. {sorted(sizes)[:2]}")
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return Split(images.float() / 255.0, torch.from_numpy(labels[chosen])), list(found.classes)


def _pixels(loader: Callable[[str], Any], path: str) -> np.ndarray:
    return np.asarray(loader(path))


def _balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first ``count`` images, taken from all classes in turn."""
    place = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, place))[:count])
