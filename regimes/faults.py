"""Faults of the machine, after which a run cannot go on, as errors for the user: of the disk, and of the device."""

from __future__ import annotations

import errno

from regimes.device_faults import fault_of
from regimes.errors import RunFailed, UserError

STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
STORAGE_TEXTS = ("No space left on device", "Disk quota exceeded", "database or disk is full")


def storage_error_of(error: BaseException) -> UserError | None:
    """Return a user error for an error of a full, read-only or failing disk; None for other errors.

    It is searched in the error, in those that it was raised from, and in those that were being handled.
    """
    link, seen = error, set[int]()
    while id(link) not in seen:
        seen.add(id(link))
        fault = next((text for text in STORAGE_TEXTS if text in str(link)), "")
        if isinstance(link, OSError) and link.errno in STORAGE_ERRNOS:
            fault = f"{link.filename}: {link.strerror}" if link.filename else str(link.strerror)
        if fault:
            return UserError(f"{fault}; what is finished is kept: make room, then run the same command again")
        link = link.__cause__ or link.__context__ or link
    return None


def user_error_of(error: Exception) -> UserError | None:
    """Return an exception as an error for the user: one already, or a fault; None: it is a bug."""
    if isinstance(error, UserError):
        return error
    if storage_error := storage_error_of(error):
        return storage_error
    if isinstance(error, OSError) and error.filename is not None:  # e.g. a folder that may not be written
        return UserError(f"{error.filename}: {error.strerror}")
    fault = fault_of(error)
    return RunFailed(f"{fault}; what is finished is kept: run the same command again") if fault else None
