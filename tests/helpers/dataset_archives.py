"""Data sets in the very files and folders that their authors publish, made here and small."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def write_archives(root: Path) -> None:
    """CIFAR-10, CIFAR-100, SVHN and TinyImageNet (three classes) below one folder."""
    random = np.random.default_rng(0)

    def pixels(count: int, side: int = 32) -> np.ndarray:
        return random.integers(0, 256, (count, 3, side, side), dtype=np.uint8)

    ten = root / "cifar-10-batches-py"
    ten.mkdir()
    for name, count in (*((f"data_batch_{each}", 60) for each in range(1, 6)), ("test_batch", 50)):
        _pickle(ten / name, {"data": pixels(count).reshape(count, -1), "labels": list(np.arange(count) % 10)})
    _pickle(ten / "batches.meta", {"label_names": [f"class {each}" for each in range(10)]})
    hundred = root / "cifar-100-python"
    hundred.mkdir()
    for name, count in (("train", 400), ("test", 200)):
        _pickle(hundred / name, {"data": pixels(count).reshape(count, -1), "fine_labels": list(np.arange(count) % 100)})
    _pickle(hundred / "meta", {"fine_label_names": [f"class {each}" for each in range(100)]})
    for name, count in (("train", 300), ("test", 60)):
        labels = 1 + np.arange(count) % 10  # SVHN calls a zero ten
        savemat(root / f"{name}_32x32.mat", {"X": pixels(count).transpose(2, 3, 1, 0), "y": labels[:, None]})
    lines = []
    for number, name in enumerate(("n01", "n02", "n03")):
        (root / "train" / name / "images").mkdir(parents=True)
        for index, image in enumerate(pixels(80, side=6)):
            _image(root / "train" / name / "images" / f"{name}_{index}.JPEG", image)
        (root / "val" / "images").mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(pixels(10, side=6)):
            file = f"val_{10 * number + index}.JPEG"
            _image(root / "val" / "images" / file, image)
            lines.append(f"{file}\t{name}\t0\t0\t5\t5\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def _pickle(path: Path, content: dict[str, object]) -> None:
    path.write_bytes(pickle.dumps(content))


def _image(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path, format="JPEG")
