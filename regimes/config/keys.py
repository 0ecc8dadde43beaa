"""Content keys: hashes of the full, resolved description of a stage; and seeds derived from roles."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SCHEMA = 2  # incremented when the meaning of a stage changes, so that old results are not reused


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value: sorted keys, shortest floats, no white space.

    Raises:
        ValueError: the value contains a NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode()


def digest(value: Any) -> str:
    """Return the key of a description: 20 hexadecimal digits (80 bits) of SHA-256."""
    return hashlib.sha256(canonical(value)).hexdigest()[:20]


def seed_of(*role: str | int) -> int:
    """Return a 63-bit seed for a role, e.g. ``seed_of("order", "dense", 0, epoch)``.

    The seed depends on the role and on the seeds of the sweep, not on the knobs: at the same dense seed, two
    temperatures start from the same weights and see the data in the same order, so they differ by the knob only.
    """
    return int.from_bytes(hashlib.sha256(canonical(list(role))).digest()[:8], "big") >> 1
