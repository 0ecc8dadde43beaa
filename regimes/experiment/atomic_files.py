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

Record = dict[str, Any]
_HOST = "".join(char for char in platform.node() if char.isalnum())[:20] or "host"  # a folder may be shared


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
    try:
        text = read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFile(f"{path}: {error.strerror}") from error
    try:
        whole = json.loads(text)
        content: Record = whole["content"]
        good = hashlib.sha256(canonical(content)).hexdigest() == whole["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(f"{path}: truncated or not a record") from error
    if not good or (expect_key is not None and content.get("key") != expect_key):
        raise DamagedFile(f"{path}: altered, its checksum does not match")
    return content


def read_regular(path: Path) -> bytes:
    """Return the content of a file, which is no pipe or device that never ends.

    Raises:
        OSError: the file cannot be read.
    """
    if path.is_fifo() or path.is_char_device() or path.is_socket():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def write_atomic(path: Path, content: bytes, keep_existing: bool = False) -> None:
    """Write a file under a temporary name, flush it and rename it.

    With ``keep_existing``, an existing file is not replaced.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{_HOST}.{os.getpid()}.", suffix=".tmp", dir=path.parent)
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
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes of this machine."""
    for path in folder.rglob(f".{_HOST}.*.tmp"):
        writer = path.name.split(".")[2]
        if not (writer.isdigit() and _alive(int(writer))):
            path.unlink(missing_ok=True)
