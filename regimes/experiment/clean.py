"""Removal of weights that no pending stage needs."""

from __future__ import annotations

from collections.abc import Sequence

from regimes.experiment.schedule import Progress
from regimes.experiment.stages.stage import Stage
from regimes.experiment.store import Store


def clean(stages: Sequence[Stage], progress: Progress, store: Store) -> tuple[int, int]:
    """Remove weights that are not needed; return (files removed, bytes freed).

    Weights that pending, failed or blocked stages start from are kept. All others can be recomputed bit for bit, and
    are if a grown sweep needs them.
    """
    unfinished = [stage for stage in stages if not store.record_file(stage.key).exists()]
    unfinished += progress.todo
    keep = {need.key for stage in unfinished for need in stage.needs}
    keep |= {need.key for stage in unfinished for parent in stage.needs for need in parent.needs}
    removed, freed = 0, 0
    for path in sorted((store.folder / "weights").glob("*/*.safetensors")):
        if path.stem not in keep:
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
            removed += 1
    store.remove_leftovers()
    return removed, freed
