"""The store: one JSON record per finished stage, weights beside it; a kill at any instant harms nothing.

Layout of a run folder::

    run.json              numerics and environment the run began with
    layout.json           the sweep as it was last run, and which stage stands where in its grid
    records/ab/ab12….json one finished stage: values, history, description, checksum
    weights/ab/ab12….safetensors
    failures/ab12….json   a stage that raised: its error text
    log.jsonl             a line for each time the run was worked on

No locks and no database: every file is written under a temporary name, flushed, and renamed. Any number of processes
may write at once; two that do the same stage write the same bytes. This module does not import torch until weights are
asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile, Record, read_checked, remove_leftovers, replace, write_checked

if TYPE_CHECKING:
    from torch import Tensor


class Store:
    """Files of one run folder, addressed by stage key."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    # -- records --------------------------------------------------------------------------------------------------

    def record_file(self, key: str) -> Path:
        """Where the record of a stage is kept."""
        return self.folder / "records" / key[:2] / f"{key}.json"

    def read(self, key: str) -> Record | None:
        """Return a stage's record, None when it is not done.

        Raises:
            Damaged: the file is there but is not what was written.
        """
        return read_checked(self.record_file(key), expect_key=key)

    def write(self, key: str, record: Record, weights: Mapping[str, Tensor] | None = None) -> None:
        """Keep a finished stage: its weights first, then the record that vouches for them."""
        if weights is not None:
            from safetensors.torch import save

            content = save({name: tensor.contiguous() for name, tensor in weights.items()})
            replace(self.weights_file(key), content)
            record = {**record, "weights": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
        write_checked(self.record_file(key), {**record, "key": key})
        self.failure_file(key).unlink(missing_ok=True)

    def numerics(self) -> Iterator[str]:
        """The ids of the numerics that sound records were made with."""
        for path in (self.folder / "records").glob("*/*.json"):
            with contextlib.suppress(DamagedFile):
                record = read_checked(path)
                if record is not None:
                    yield record["numerics"]

    def drop(self, key: str) -> None:
        """Forget a stage, so that it is done again."""
        for path in (self.record_file(key), self.weights_file(key)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # -- weights --------------------------------------------------------------------------------------------------

    def weights_file(self, key: str) -> Path:
        """Where the weights of a stage are kept."""
        return self.folder / "weights" / key[:2] / f"{key}.safetensors"

    def weights(self, key: str) -> dict[str, Tensor]:
        """Return the tensors kept with a stage.

        Raises:
            Damaged: the file is missing, or its bytes are not those the record vouches for.
        """
        from safetensors.torch import load

        record = self.read(key)
        content = self._vouched(key, record or {})
        if content is None:
            raise DamagedFile(f"{self.weights_file(key)}: missing")
        return load(content)

    def check_weights(self, key: str, record: Record) -> None:
        """Raise Damaged when a stage's weights are there but are not those its record vouches for."""
        self._vouched(key, record)

    def _vouched(self, key: str, record: Record) -> bytes | None:
        path = self.weights_file(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedFile(f"{path}: {error.strerror}") from error
        promised = record.get("weights") or {}
        if hashlib.sha256(content).hexdigest() != promised.get("sha256"):
            raise DamagedFile(
                f"{path}: {len(content)} bytes, {promised.get('bytes')} were written; truncated or altered"
            )
        return content

    # -- failures -------------------------------------------------------------------------------------------------

    def failure_file(self, key: str) -> Path:
        """Where the error of a failed stage is kept."""
        return self.folder / "failures" / f"{key}.json"

    def fail(self, key: str, error: str, trace: str, at: Mapping[str, Any]) -> None:
        """Keep the error of a stage that raised."""
        write_checked(self.failure_file(key), {"key": key, "error": error, "trace": trace, "at": dict(at)})

    def failure(self, key: str) -> Record | None:
        """The error of a failed stage, None when it has not failed; an unreadable one counts as none."""
        try:
            return read_checked(self.failure_file(key), expect_key=key)
        except DamagedFile:
            return None

    # -- the run's own files --------------------------------------------------------------------------------------

    @property
    def head(self) -> Record | None:
        """What run.json says of the numerics and the environment the run began with; None before a run.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return self.read_json("run.json")
        except DamagedFile as error:
            raise UserError(
                f"{error}; remove it, and `regimes run` takes this machine's numerics as the run's"
            ) from error

    @property
    def checkpoints(self) -> dict[str, str]:
        """{file: hash of what it held} of the checkpoints that this run was last laid out with."""
        try:
            layout = self.read_json("layout.json") or {}
        except DamagedFile:
            return {}
        return dict(stage["file"] for stage in layout.get("stages", ()) if "file" in stage)

    @property
    def layout(self) -> Record:
        """What layout.json says: the sweep, and which stage stands where.

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

    def write_json(self, name: str, content: Record, first: bool = False) -> None:
        """Keep one of the run's own files, e.g. run.json; with ``first`` the one that was there first stays."""
        write_checked(self.folder / name, content, first)

    def read_json(self, name: str) -> Record | None:
        """Read one of the run's own files; None when it is not there.

        Raises:
            Damaged: it is there but is not what was written.
        """
        return read_checked(self.folder / name)

    def remove_leftovers(self) -> None:
        """Remove temporary files of writers on this machine that were killed."""
        remove_leftovers(self.folder)


def open_store(folder: str | Path) -> Store:
    """Return the store of an existing run.

    Raises:
        UserError: there is no run in the folder.
    """
    store = Store(folder)
    if not (store.folder / "run.json").exists():
        raise UserError(f"{folder}: no run in this folder (run.json is missing); make one with: regimes run SWEEP.toml")
    return store
