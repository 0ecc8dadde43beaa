"""What ``regimes study`` prints."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import typer


def show_study(what: str, out: Path, runs: Path) -> None:
    """Do a study, say what it is at, print its tables and write its page."""
    from regimes.errors import UserError
    from regimes.registry import load
    from regimes.research.page import Page
    from regimes.research.studies import STUDIES

    started = time.perf_counter()
    study = load(STUDIES, what, "study")
    found: Page = study(out, runs, lambda line: print(line, file=sys.stderr))
    typer.echo(found.text())
    try:
        found.write(out, " ".join(["regimes", *sys.argv[1:]]), (time.perf_counter() - started) / 60)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    typer.echo(f"wrote {out / 'README.md'}", err=True)
