"""Text of Python's standard library: splits by file, targets that follow, and what is said where there is none."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path

import pytest
import torch

from regimes import UserError
from regimes.data.stdlib_text import character_numbers, sequences, split_files, stdlib_text, text_of

SMALL = {"train": 300, "val": 80, "test": 90, "length": 20}
LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def test_targets_are_the_characters_that_follow() -> None:
    data = stdlib_text(**SMALL)
    for split, count in ((data.train, 300), (data.val, 80), (data.test, 90)):
        assert split.inputs.shape == split.targets.shape == (count, 20)
        assert split.inputs.dtype == split.targets.dtype == torch.int64
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
        assert torch.equal(split.inputs[1:, 0], split.targets[:-1, -1])  # the text goes on in the next row
        assert int(split.inputs.max()) < data.classes == 64
    assert data.title == f"docstrings of Python {platform.python_version()}, 9,400 characters"
    assert data.input_shape == (20,)
    assert data.guess is not None
    assert 0.75 < data.guess < 0.9  # the blank is the most common character


def test_the_same_options_give_the_same_text_and_others_another() -> None:
    data = stdlib_text(**SMALL)
    assert stdlib_text(**SMALL).fingerprint == data.fingerprint
    for change in ({"seed": 1}, {"length": 21}, {"vocabulary": 30}):
        assert stdlib_text(**{**SMALL, **change}).fingerprint != data.fingerprint
    longer = stdlib_text(**{**SMALL, "train": 400})
    assert len(set(split_files("train")) & set(split_files("train", seed=1))) < len(split_files("train"))
    assert len(longer.train.targets) == 400


def test_splits_have_files_of_their_own_and_no_docstring_twice() -> None:
    files = {split: split_files(split) for split in ("train", "val", "test")}
    assert sum(map(len, files.values())) == len(set().union(*files.values())) > 200
    total = sum(map(len, files.values()))
    assert [len(each) / total for each in files.values()] == pytest.approx([0.6, 0.2, 0.2], abs=0.06)
    for path in set().union(*files.values()):
        assert not {"site-packages", "test", "tests", "tkinter"} & set(path.relative_to(LIBRARY).parts)
    seen: set[str] = set()
    first = text_of(files["train"][:5], 10**6, seen)
    assert len(first) > 1000
    assert text_of(files["train"][:5], 10**6, seen) == ""


def test_characters_are_numbered_by_the_training_text() -> None:
    numbers = character_numbers("banana bread", 4)
    assert numbers == {"a": 1, "b": 2, "n": 3}  # of those that occur twice, the first ones of the alphabet
    split = sequences("abcnaz", numbers, 5)
    assert split.inputs.tolist() == [[1, 2, 0, 3, 1]]
    assert split.targets.tolist() == [[2, 0, 3, 1, 0]]
    assert sequences("abcna", numbers, 2).inputs.tolist() == [[1, 2], [0, 3]]


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"stdlib-text: val = 0: allowed: 1 or more"):
        stdlib_text(val=0)
    with pytest.raises(UserError, match=r"stdlib-text: length = 1: allowed: 2 or more"):
        stdlib_text(length=1)
    with pytest.raises(UserError, match=r"stdlib-text: vocabulary = 1: allowed: 2 or more"):
        stdlib_text(vocabulary=1)
    with pytest.raises(UserError, match=r"test = 90000: this Python has text for \d+ sequences of 32"):
        stdlib_text(test=90000)


def test_without_source_files_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match=r"no source files of Python's standard library in .*; use another Python"):
        stdlib_text()
    (tmp_path / "abc.py").write_text('"""' + "A text of some length, in words. " * 90 + '"""\n')
    (tmp_path / "os.py").write_text("this is not Python (\n")
    files = [each for split in ("train", "val", "test") for each in split_files(split)]
    assert sorted(each.name for each in files) == ["abc.py", "os.py"]
    assert len(text_of(sorted(files), 500, set())) == 500
    with pytest.raises(UserError, match="this Python has text for"):
        stdlib_text()
