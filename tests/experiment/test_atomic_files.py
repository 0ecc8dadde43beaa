"""Damaged, removed and foreign files of a run: named, and made again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import done

import regimes
from regimes.config.sweep_file import resolve_sweep
from regimes.errors import UserError
from regimes.experiment import atomic_files as files
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.run import Result, prepare
from regimes.experiment.store import Store

Sweep = dict[str, Any]
Run = Callable[..., Result]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(bytes(content[: len(content) // 2]))
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "a pipe":  # reading it would not end
        path.unlink()
        os.mkfifo(path)
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["truncated", "altered", "emptied", "a pipe"])
@pytest.mark.parametrize("what", ["records/*/*.json", "weights/*/*.safetensors"])
def test_damaged_file_is_named_and_done_again(tiny: Sweep, run_tiny: Run, what: str, how: str) -> None:
    first = run_tiny(tiny)
    before = done(Store(first.folder))
    found = sorted(first.folder.glob(what))
    for index in (0, len(found) // 2):
        damage(found[index], how)
    progress = prepare(resolve_sweep(tiny), first.folder).progress
    assert len(progress.damaged) == 2
    assert all(str(found[index]) in " ".join(progress.damaged.values()) for index in (0, len(found) // 2))
    again = run_tiny(tiny)
    assert not again.progress.damaged
    assert not again.progress.todo
    assert done(Store(first.folder)) == before


def test_an_altered_number_is_not_believed(tiny: Sweep, run_tiny: Run) -> None:
    folder = run_tiny(tiny).folder
    path = next(path for path in folder.glob("records/*/*.json") if '"cka":{' in path.read_text())
    text = path.read_text()
    path.write_text(text.replace('"samples":180', '"samples":181'))
    assert path.read_text() != text
    with pytest.raises(DamagedFile, match="altered"):
        Store(folder).read(path.stem)
    assert int(regimes.open(folder).cka.isnull().sum()) == 1


def test_removed_weights_are_made_again_only_where_needed(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    from regimes.experiment.clean import clean

    result = run_tiny(tiny)
    before = done(Store(result.folder))
    removed, freed = clean(result.stages, result.progress, Store(result.folder))
    assert removed == 2 + 4 + 8
    assert freed > 0
    count.clear()
    run_tiny(tiny)
    assert not count
    tiny["load"]["density"].append(0.4)
    run_tiny(tiny)
    assert count == {"train": 2, "prune": 2, "retrain": 4, "measure": 8}
    after = done(Store(result.folder))
    assert {key: after[key] for key in before} == before


def test_clean_keeps_what_pending_stages_need(tiny: Sweep, run_tiny: Run, count: Counter[str]) -> None:
    from regimes.experiment.clean import clean

    tiny["model"] = {"name": "test_failures:broken_mlp"}
    result = run_tiny(tiny)
    clean(result.stages, result.progress, Store(result.folder))
    kept = {path.stem for path in result.folder.glob("weights/*/*")}
    thin = [stage for stage in result.stages if stage.kind == "retrain" and stage.coords["density"] == 0.2]
    assert kept == {need.key for stage in thin for need in stage.needs}


def test_numerics_that_changed_are_refused_unless_allowed(
    tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny(tiny)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    began = r"started with stacked \(dense networks eager\), float32, (channels-last|contiguous-format), cpu .*--allow-"
    with pytest.raises(UserError, match=began):
        run_tiny(tiny)
    assert not run_tiny(tiny, allow_mixed=True).progress.todo


def test_leftovers_of_killed_writers_are_removed(tiny: Sweep, run_tiny: Run) -> None:
    folder = run_tiny(tiny).folder
    killed, elsewhere = (folder / "records" / f".{host}.999999999.abc.tmp" for host in (files.HOST, "anotherhost"))
    alive = folder / "records" / f".{files.HOST}.{os.getpid()}.abc.tmp"
    for path in (killed, elsewhere, alive):
        path.write_text("half a rec")
    run_tiny(tiny)
    assert not killed.exists()
    assert elsewhere.exists()
    assert alive.exists()


def test_run_json_that_was_removed_does_not_let_numerics_mix(
    tiny: Sweep, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_tiny(tiny).folder / "run.json").unlink()
    run_tiny(tiny)
    (run_tiny(tiny).folder / "run.json").unlink()
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(UserError, match="--allow-mixed"):
        run_tiny(tiny)
