"""Text formats that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from regimes.errors import printable

STAGE_NOUNS = {
    "train": "snapshots",
    "given": "checkpoints",
    "prune": "masks",
    "discover": "discovered networks",
    "retrain": "retrained copies",
    "measure": "measurements",
}
MAX_FAILURES = 10  # printed in full


def stage_name(kind: str, coords: Mapping[str, Any]) -> str:
    """A stage by its place in the grid, e.g. "retrain epochs=40 density=0.05 dense_seed=0"."""
    return " ".join([kind, *(f"{name}={value:g}" for name, value in coords.items())])


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 3 * 86_400 else f"{seconds / 86_400:,.0f} days"


def size(count: int) -> str:
    """A number of bytes in MB or GB."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def echo_problems(failed: Mapping[str, str], damaged: list[str], blocked: int = 0) -> None:
    """Print failed stages with their errors, how many stages wait for them, and damaged files."""
    for name, error in list(failed.items())[:MAX_FAILURES]:
        typer.echo(printable(f"  failed   {name}: {error}"))
    if len(failed) > MAX_FAILURES:
        typer.echo(f"  ... and {len(failed) - MAX_FAILURES} more")
    if blocked:
        typer.echo(f"  {blocked} stages wait for a failed one")
    for line in damaged:
        typer.echo(printable(f"  damaged  {line}; will be recomputed"))
