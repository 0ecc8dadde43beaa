"""The journal of a search: an unfinished last line is dropped, other damage is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import optuna
import pytest

from regimes.errors import UserError
from regimes.faults import storage_error_of
from regimes.hpo.optuna_study import open_storage


def study_with(path: Path, trials: int) -> optuna.Study:
    """A study in a journal with more trials than before."""
    study = optuna.create_study(storage=open_storage(str(path)), study_name="s", load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
    return study


def test_it_is_readable_after_a_cut_at_any_byte(tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    whole = tmp_path / "whole.log"
    values = [trial.value for trial in study_with(whole, 3).trials]
    content = whole.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    for cut in range(last - 40, len(content) + 1, 7):
        path = tmp_path / f"{cut}.log"
        path.write_bytes(content[:cut])
        more = study_with(path, 1)
        assert [trial.value for trial in more.trials if trial.value is not None][: len(values) - 1] == values[:-1]
        assert study_with(path, 1).trials  # once more, from the file


def test_a_line_longer_than_a_block_is_dropped_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    study = study_with(path, 1)
    before = path.read_bytes()
    study.set_user_attr("long", "x" * 20_000)
    path.write_bytes(path.read_bytes()[:-5])
    study_with(path, 0).set_user_attr("short", 1)
    assert path.read_bytes().startswith(before)
    assert study_with(path, 0).user_attrs == {"short": 1}


@pytest.mark.parametrize("line", [b"\x00" * 50, b"[1]", b'{"op_code": 5', b"\xff\xfe"])
def test_other_damage_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "study.log"
    study_with(path, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], line + b"\n", *lines[3:]]))
    with pytest.raises(UserError, match=r"study.log: line 4 is damaged; put back a copy of the file"):
        study_with(path, 1)


def test_damage_of_a_finished_last_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    study_with(path, 1)
    path.write_bytes(path.read_bytes() + b"{}{\n")
    with pytest.raises(UserError, match=r"study.log: its last line is damaged"):
        study_with(path, 1)


def test_a_full_disk_is_named_and_leaves_the_journal_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.log"
    study = study_with(path, 1)

    def full(handle: int) -> None:
        with open(path, "ab") as journal:
            journal.write(b'{"op_code"')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as raised:
            study.set_user_attr("a", 1)
    error: Any = storage_error_of(raised.value)
    assert str(error) == (
        f"{path}: No space left on device; what is finished is kept: make room, then run the same command again"
    )
    assert len(study_with(path, 1).trials) == 2
