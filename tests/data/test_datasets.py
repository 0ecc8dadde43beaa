"""Images as bytes: equal to the float tensor, shared between splits, decoded once; archives that are not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regimes import UserError
from regimes.data import DATASETS
from regimes.data.dataset import Dataset, Split
from regimes.data.images import decode_images, from_bytes
from regimes.data.uint8_images import Uint8Images
from regimes.registry import lookup

CPU = torch.device("cpu")


def made(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8), np.arange(count) % 3


def test_bytes_are_the_standardised_tensor() -> None:
    images, labels = made()
    data = from_bytes((images, labels), made(30), None, 3, "made", val_fraction=0.2)
    kept = data.train.inputs.rows.numpy()  # type: ignore[attr-defined]
    whole = torch.from_numpy(images[kept]).double() / 255
    mean, deviation = whole.mean(dim=(0, 2, 3), keepdim=True), whole.std(dim=(0, 2, 3), keepdim=True, correction=0)
    assert len(data.train.targets) == 48
    assert torch.allclose(data.train.inputs[:].double(), (whole - mean) / deviation, atol=1e-5)
    assert torch.equal(data.train.targets, torch.from_numpy(labels[kept]))
    assert not set(kept) & set(data.val.inputs.rows.tolist())  # type: ignore[attr-defined]


def test_bytes_behave_as_the_tensor_would() -> None:
    data = from_bytes(made(), made(30), None, 3, "made")
    pixels = data.to(CPU, torch.float64, torch.channels_last).train.inputs
    assert isinstance(pixels, Uint8Images)
    tensor = pixels[:]
    assert tensor.dtype == torch.float64
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert pixels.shape == tensor.shape
    assert len(pixels) == len(tensor)
    assert pixels.dim() == 4
    which = torch.tensor([5, 0, 5, 17])
    for index in (which, slice(3, 9), 7, which.numpy()):
        assert torch.equal(pixels[index], tensor[index])
    assert all(torch.equal(a, b) for a, b in zip(pixels.split(7), tensor.split(7), strict=True))
    assert pixels.nbytes == tensor.numel()


def test_splits_share_the_bytes_and_the_fingerprint_sees_each() -> None:
    images, labels = made()
    data = from_bytes((images, labels), made(30), None, 3, "made")
    assert data.train.inputs.bytes.data_ptr() == data.val.inputs.bytes.data_ptr()  # type: ignore[attr-defined]
    same = from_bytes((images.copy(), labels), made(30), None, 3, "another title")
    assert same.fingerprint == data.fingerprint
    other = images.copy()
    other[7, 0, 0, 0] ^= 1
    assert from_bytes((other, labels), made(30), None, 3, "made").fingerprint != data.fingerprint


def test_the_first_images_stay_bytes() -> None:
    whole = from_bytes(made(), made(30), None, 3, "made").to(CPU, torch.float64, torch.channels_last).train
    few = whole.first(5)
    assert isinstance(few.inputs, Uint8Images)
    assert few.inputs.bytes.data_ptr() == whole.inputs.bytes.data_ptr()
    assert torch.equal(few.inputs[:], whole.inputs[:5])
    assert torch.equal(few.targets, whole.targets[:5])
    plain = Split(torch.arange(6.0), torch.arange(6)).first(4)
    assert [each.tolist() for each in plain] == [[0, 1, 2, 3]] * 2


def test_files_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = []
    for number, image in enumerate(made(5)[0]):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image.transpose(1, 2, 0)).save(files[-1])
    asked = []

    def load_file(path: str) -> Image.Image:
        asked.append(path)
        return Image.open(path)

    first = decode_images(files, load_file, "here")
    assert np.array_equal(first, made(5)[0])
    count = len(asked)
    assert np.array_equal(decode_images(files, load_file, "here"), first)
    assert len(asked) == count
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(files[0])  # another image: decoded anew
    assert not decode_images(files, load_file, "here")[0].any()
    with pytest.raises(UserError, match="no images"):
        decode_images([], load_file, "here")
    assert not list((tmp_path / "cache" / "regimes").glob("*.part"))


def test_images_are_reduced_by_averaging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wide = np.random.default_rng(5).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    expected = wide[:, 2:10].reshape(4, 2, 4, 2, 3).mean((1, 3)).transpose(2, 0, 1)  # the middle, in blocks of 2 x 2
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(wide).save(folder / f"{number}.png")
    Image.fromarray(wide[:, :8]).save(folder / "narrow.png")
    read = lookup(DATASETS, "imagefolder", "data set")
    data: Dataset = read(root=str(tmp_path / "images"), size=4)
    assert data.input_shape == (3, 4, 4)
    assert data.title == "images, resized to 4x4"
    assert read(root=str(tmp_path / "images"), size=4, title="mine, 4x4").title == "mine, 4x4"
    assert np.abs(data.train.inputs.bytes[0].numpy() - expected).max() <= 1  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"images of different size.*set data.size = N"):
        read(root=str(tmp_path / "images"))
    for size in (-4, 4.5, 64):
        with pytest.raises(UserError, match=rf"data\.size = {size}: allowed is"):
            read(root=str(tmp_path / "images"), size=size)


@pytest.mark.parametrize(
    ("name", "classes", "shape"),
    [
        ("cifar10", 10, (3, 32, 32)),
        ("cifar100", 100, (3, 32, 32)),
        ("svhn", 10, (3, 32, 32)),
        ("tinyimagenet", 3, (3, 6, 6)),
    ],
)
def test_archives_are_read_as_published(name: str, classes: int, shape: tuple[int, ...], archives: Path) -> None:
    data: Dataset = lookup(DATASETS, name, "data set")(
        root=str(archives), images=30 * classes // 10, test_images=classes
    )
    assert data.classes == classes
    assert data.input_shape == shape
    assert len(data.train.targets) + len(data.val.targets) == 30 * classes // 10
    assert torch.bincount(data.test.targets, minlength=classes).tolist() == [1] * classes
    counts = f"{len(data.train.targets)} training images, {classes} test images"
    assert data.title.endswith(counts)
    small: Dataset = lookup(DATASETS, name, "data set")(
        root=str(archives), images=30 * classes // 10, test_images=classes, size=2
    )
    assert small.input_shape == (3, 2, 2)
    assert small.title == f"{data.title}, resized to 2x2"
    assert "," not in lookup(DATASETS, name, "data set")(root=str(archives)).title
    assert torch.equal(small.test.targets, data.test.targets)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", "needs .*cifar-10-batches-py, which does not exist"),
        ("cifar100", "needs .*cifar-100-python, which does not exist"),
        ("svhn", "needs .*train_32x32.mat, which does not exist"),
        ("tinyimagenet", "train/CLASS/images"),
    ],
)
def test_a_missing_data_set_says_what_it_expects(name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected) as error:
        lookup(DATASETS, name, "data set")(root=str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_users_module_may_import_torchvision_itself(tmp_path: Path) -> None:
    """In a process of its own, where nothing has imported torchvision yet, beside a torch without its operators."""
    (tmp_path / "mine.py").write_text("import torchvision\nimport torchvision.transforms as T\nvalue = T.Resize(8)\n")
    code = "from regimes.registry import lookup; print(lookup({}, 'mine:value', 'thing').size)"
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "8", out.stderr


@pytest.mark.parametrize(
    ("inputs", "targets", "line"),
    [
        (torch.zeros(4, 2), ["a", "b", "a", "b"], "train targets must be class numbers .*got str"),
        (torch.zeros(4, 2), None, "train targets must be class numbers .*got NoneType"),
        (torch.zeros(4, 2), 3, "train targets must be an array, one row per input"),
        (
            (torch.zeros(4, 2), (torch.zeros(4), torch.zeros(4))),
            [0, 1, 0, 1],
            "train inputs are nested; give one tuple",
        ),
        ({"a": {"b": torch.zeros(4)}}, [0, 1, 0, 1], "train inputs are nested; give one tuple"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(inputs: Any, targets: Any, line: str) -> None:
    with pytest.raises(UserError, match=f"^data set 'own': {line}"):
        Dataset.from_arrays((inputs, targets), (inputs, targets), title="own")


def test_wrong_labels_are_in_the_caption() -> None:
    digits = lookup(DATASETS, "digits", "data set")
    assert digits().title == "handwritten digits (scikit-learn)"
    assert digits(label_noise=0.2).title.endswith(", 0.2 of the training labels wrong")
