"""Content keys: a hash of the full, resolved description of a stage."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SCHEMA = 2  # raised when the meaning of a stage changes, so that old results are not taken for new ones


def canonical(value: Any) -> bytes:
    """Return one byte string per meaning: JSON with sorted keys, shortest floats, no white space.

    Raises:
        ValueError: a NaN or an infinity, which no description may contain.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode()


def digest(value: Any) -> str:
    """Return the key of a description: 20 hexadecimal digits (80 bits) of SHA-256."""
    return hashlib.sha256(canonical(value)).hexdigest()[:20]


def seed_of(*role: str | int) -> int:
    """Return a 63-bit seed for a role, e.g. ``seed_of("order", "dense", 0, epoch)``.

    The seed depends on what the numbers are for and on the seeds of the sweep, not on the knobs: two temperatures with
    one dense seed start from the same weights and see the data in the same order, so their difference is the knob's.
    """
    return int.from_bytes(hashlib.sha256(canonical(list(role))).digest()[:8], "big") >> 1
