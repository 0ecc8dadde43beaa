"""Files that are whole or not there: written aside and renamed, read with their checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from regimes.config.keys import canonical

Record = dict[str, Any]
_HOST = "".join(each for each in platform.node() if each.isalnum())[:20] or "host"  # a folder may be shared


class DamagedFile(Exception):
    """A stored file that is truncated, altered or not readable; the text names it."""


def write_checked(path: Path, content: Record, first: bool = False) -> None:
    """Write a JSON object with its checksum, atomically; with ``first`` only where nobody was quicker."""
    body = canonical(content)
    checksum = hashlib.sha256(body).hexdigest()
    replace(path, b'{"sha256":"' + checksum.encode() + b'","content":' + body + b"}\n", first)


def read_checked(path: Path, expect_key: str | None = None) -> Record | None:
    """Read what `write_checked` wrote; None when the file is not there.

    Raises:
        Damaged: the file is truncated, altered, or belongs to another key.
    """
    try:
        text = path.read_bytes()
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
        raise DamagedFile(f"{path}: altered, its checksum does not fit")
    return content


def replace(path: Path, content: bytes, first: bool = False) -> None:
    """Write a file under a temporary name, flush it, and put it in its place in one instant.

    With ``first``, a file that is already there stays.

    Raises:
        OSError: it cannot be written; names the file.
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
        if first:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            os.unlink(temporary)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk names no file by itself
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
    """Remove temporary files of writers on this machine that were killed and are no longer running."""
    for path in folder.rglob(f".{_HOST}.*.tmp"):
        writer = path.name.split(".")[2]
        if not (writer.isdigit() and _alive(int(writer))):
            path.unlink(missing_ok=True)
