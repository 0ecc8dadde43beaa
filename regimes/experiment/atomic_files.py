"""Atomic files: written to a temporary file, flushed and renamed; JSON files carry a checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from regimes.config.keys import canonical
from regimes.experiment.process_identity import start_of

Record = dict[str, Any]
HOST = "".join(char for char in platform.node() if char.isalnum())[:20] or "host"  # a folder may be shared


class DamagedFile(Exception):
    """A stored file that is truncated, altered or unreadable; the message names it."""


def write_checked(path: Path, content: Record, keep_existing: bool = False) -> None:
    """Write a JSON object with its checksum atomically; with ``keep_existing``, an existing file is not replaced."""
    body = canonical(content)
    checksum = hashlib.sha256(body).hexdigest()
    write_atomic(path, b'{"sha256":"' + checksum.encode() + b'","content":' + body + b"}\n", keep_existing)


def read_checked(path: Path, expect_key: str | None = None) -> Record | None:
    """Read a file written by `write_checked`; return None if it does not exist.

    Raises:
        DamagedFile: the file is truncated, altered, or belongs to another key.
    """
    text = read_stored(path)
    if text is None:
        return None
    try:
        whole = json.loads(text)
        content: Record = whole["content"]
        good = hashlib.sha256(canonical(content)).hexdigest() == whole["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(f"{path}: truncated or not a record") from error
    if not good or (expect_key is not None and content.get("key") != expect_key):
        raise DamagedFile(f"{path}: altered, its checksum does not match")
    return content


def read_stored(path: Path) -> bytes | None:
    """Return the content of a stored file; None if it does not exist.

    Raises:
        DamagedFile: it cannot be read, or is no regular file: reading a pipe would not end.
    """
    try:
        if not path.is_file() and path.exists():
            raise DamagedFile(f"{path}: not a regular file")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFile(f"{path}: {error.strerror}") from error


def write_atomic(path: Path, content: bytes, keep_existing: bool = False) -> None:
    """Write a file under a temporary name, flush it and rename it.

    With ``keep_existing``, an existing file is not replaced.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{HOST}.{os.getpid()}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # a run's folder may be shared
        if keep_existing:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            os.unlink(temporary)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # "no space left" does not name the file
            needed = f", {len(content):,} bytes to write" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise OSError(error.errno, f"{error.strerror}{needed}", str(path)) from error
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes of this machine."""
    for path in folder.rglob(f".{HOST}.*.tmp"):
        writer = path.name.split(".")[2]
        if not (writer.isdigit() and start_of(int(writer))):
            path.unlink(missing_ok=True)
