"""What ``regimes bench`` prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer


def show_bench(what: str, device: str, rounds: int, images: str, out: Path | None, as_json: bool, **more: Any) -> None:
    """Run a bench, say what it is at, print its tables."""
    from regimes.errors import UserError
    from regimes.experiment.context import numerics_of
    from regimes.registry import load
    from regimes.research.speed import BENCHES
    from regimes.research.speed.rate_table import Bench

    numerics_of(device, "eager", "eager")  # refuses a device that is not there
    if images and not (Path(images) / "train").is_dir():
        raise UserError(f"--images {images}: no folder train/ in it; expected train/CLASS/*.jpg and test/CLASS/*.jpg")
    if what != "hpo" and any(more.values()):
        raise UserError("--recording, --live: belong to `regimes bench hpo`")
    chosen = more if what == "hpo" else {}
    found: Bench = load(BENCHES, what, "bench")(
        device, rounds, images, lambda line: print(line, file=sys.stderr), **chosen
    )
    typer.echo(found.json() if as_json else found.text())
    if out is not None:
        files = found.write(out, " ".join(["regimes", *sys.argv[1:]]))
        typer.echo(f"wrote {', '.join(str(file) for file in files)}", err=True)
