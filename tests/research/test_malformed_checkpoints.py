"""Random malformed checkpoints are read or refused; the same seed makes the same file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from regimes.research.abuse.checkpoints import attack


def test_malformed_checkpoints_are_read_or_refused(tmp_path: Path) -> None:
    found = Counter(attack(seed, tmp_path) for seed in range(100))
    assert not [each for each in found if each.startswith("traceback")], found
    assert found["refused"] > found["read"] > 0
    held = []
    for _ in range(2):
        attack(7, tmp_path)
        held.append([(file.name, file.read_bytes()) for file in sorted(tmp_path.iterdir())])
    assert held[0] == held[1]
