"""The store: a JSON record and a weight file for each finished stage; safe against kills at any instant.

Layout of a run folder::

    run.json              numerics and environment that the run started with
    layout.json           the sweep as it was last run, and the grid coordinates of its stages
    records/ab/ab12….json one finished stage: values, history, description, checksum
    weights/ab/ab12….safetensors
    failures/ab12….json   the error and traceback of a stage that raised
    log.jsonl             one line for each invocation

There are no locks and no database: every file is written under a temporary name, flushed and renamed. Any number of
processes may write at once; two that do the same stage write the same values. This module imports torch only when
weights are read or written.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from regimes.errors import UserError
from regimes.experiment.atomic_files import (
    DamagedFile,
    Record,
    read_checked,
    read_stored,
    remove_leftovers,
    write_atomic,
    write_checked,
)

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Store:
    """Files of a run folder, addressed by stage key."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    # -- records --------------------------------------------------------------------------------------------------

    def record_file(self, key: str) -> Path:
        """Return the path of a stage's record."""
        return self.folder / "records" / key[:2] / f"{key}.json"

    def read(self, key: str) -> Record | None:
        """Return a stage's record, None if it is not done.

        Raises:
            DamagedFile: the file is not what was written.
        """
        return read_checked(self.record_file(key), expect_key=key)

    def write(self, key: str, record: Record, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a finished stage: first its weights, then the record with their checksum."""
        if weights is not None:
            from safetensors.torch import save

            content = save({name: tensor.contiguous() for name, tensor in weights.items()})
            write_atomic(self.weights_file(key), content)
            record = {**record, "weights": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
        write_checked(self.record_file(key), {**record, "key": key})
        self.failure_file(key).unlink(missing_ok=True)

    def copy_from(self, other: Store, key: str) -> bool:
        """Copy a finished stage of another run, with its weights if they are stored; return whether it is intact.

        Same key, same numerics: the same values; a stage that this store has already is left as it is.
        """
        try:
            record = other.read(key)
            if record is None or self.record_file(key).exists():
                return record is not None
            content = other._read_checked_weights(key, record)
        except DamagedFile:
            return False
        if content is not None:
            write_atomic(self.weights_file(key), content)
        write_checked(self.record_file(key), record)
        return True

    def numerics(self) -> Iterator[str]:
        """Iterate over the numerics ids of all intact records."""
        for path in (self.folder / "records").glob("*/*.json"):
            with contextlib.suppress(DamagedFile):
                record = read_checked(path)
                if record is not None:
                    yield record["numerics"]

    def drop(self, key: str) -> None:
        """Remove a stage's files, so that it is done again."""
        for path in (self.record_file(key), self.weights_file(key)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # -- weights --------------------------------------------------------------------------------------------------

    def weights_file(self, key: str) -> Path:
        """Return the path of a stage's weights."""
        return self.folder / "weights" / key[:2] / f"{key}.safetensors"

    def weights(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of a stage.

        Raises:
            DamagedFile: the file is missing or does not match the checksum in the record.
        """
        from safetensors.torch import load

        record = self.read(key)
        content = self._read_checked_weights(key, record or {})
        if content is None:
            raise DamagedFile(f"{self.weights_file(key)}: missing")
        return load(content)

    def check_weights(self, key: str, record: Record) -> None:
        """Raise `DamagedFile` if the weights exist but do not match the checksum in the record."""
        self._read_checked_weights(key, record)

    def is_intact(self, key: str) -> bool:
        """Return whether a stage is done, with its weights on disk if it has any."""
        try:
            record = self.read(key)
            if record is None or not record.get("weights"):
                return record is not None
            return self._read_checked_weights(key, record) is not None
        except DamagedFile:
            return False

    def _read_checked_weights(self, key: str, record: Record) -> bytes | None:
        path = self.weights_file(key)
        content = read_stored(path)
        if content is None:
            return None
        expected = record.get("weights") or {}
        if hashlib.sha256(content).hexdigest() != expected.get("sha256"):
            raise DamagedFile(f"{path}: {len(content)} bytes, expected {expected.get('bytes')}; truncated or altered")
        return content

    # -- failures -------------------------------------------------------------------------------------------------

    def failure_file(self, key: str) -> Path:
        """Return the path of a failed stage's error."""
        return self.folder / "failures" / f"{key}.json"

    def fail(self, key: str, error: str, trace: str, at: Mapping[str, Any]) -> None:
        """Write the error of a stage that raised."""
        write_checked(self.failure_file(key), {"key": key, "error": error, "trace": trace, "at": dict(at)})

    def failure(self, key: str) -> Record | None:
        """Return the error of a failed stage, None if there is none or its file is damaged."""
        try:
            return read_checked(self.failure_file(key), expect_key=key)
        except DamagedFile:
            return None

    # -- the run's own files --------------------------------------------------------------------------------------

    @property
    def run_info(self) -> Record | None:
        """Content of run.json, the numerics and environment that the run started with; None before a run.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return self.read_json("run.json")
        except DamagedFile as error:
            raise UserError(
                f"{error}; remove it, then `regimes run` writes it again with this machine's numerics"
            ) from error

    @property
    def checkpoints(self) -> dict[str, str]:
        """{file: content hash} of the checkpoints in layout.json."""
        try:
            layout = self.read_json("layout.json") or {}
        except DamagedFile:
            return {}
        return dict(stage["file"] for stage in layout.get("stages", ()) if "file" in stage)

    @property
    def layout(self) -> Record:
        """Content of layout.json: the sweep and the grid coordinates of its stages.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            layout = self.read_json("layout.json")
        except DamagedFile as error:
            layout, problem = None, str(error)
        else:
            problem = f"{self.folder / 'layout.json'}: missing"
        if layout is None:
            raise UserError(f"{problem}; write it again with: regimes run SWEEP.toml --out {self.folder}")
        return layout

    def write_json(self, name: str, content: Record, keep_existing: bool = False) -> None:
        """Write one of the run's own files, e.g. run.json; with ``keep_existing``, an existing one is not replaced."""
        write_checked(self.folder / name, content, keep_existing)

    def read_json(self, name: str) -> Record | None:
        """Read one of the run's own files; return None if it does not exist.

        Raises:
            DamagedFile: the file is not what was written.
        """
        return read_checked(self.folder / name)

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed processes of this machine."""
        remove_leftovers(self.folder)


def reads_run(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Report, as a `UserError`, files of a run that are intact but hold something else than this version writes.

    The decorated function's first argument is the run folder.
    """

    @functools.wraps(function)
    def wrapped(run: str | Path, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(run, *args, **kwargs)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
            reason = f"{type(error).__name__}: {str(error)[:100]}"
            raise UserError(
                f"{run}: its files hold something else than this version of regimes writes ({reason}); "
                f"write them again with: regimes run SWEEP.toml --out {run}"
            ) from error

    return wrapped


def open_store(folder: str | Path) -> Store:
    """Return the store of an existing run.

    Raises:
        UserError: there is no run in the folder.
    """
    store = Store(folder)
    if not (store.folder / "run.json").exists():
        raise UserError(f"{folder}: no run in this folder (run.json is missing); make one with: regimes run SWEEP.toml")
    return store
