"""``regimes clean``: free disk space."""

from __future__ import annotations

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.formatting import size
from regimes.cli.options import Run


@report_user_errors
def clean(run: Run) -> None:
    """Remove weights that no pending stage needs; a sweep that grows later recomputes what it lacks."""
    from regimes.experiment.clean import clean as remove_weights
    from regimes.experiment.run import prepare
    from regimes.experiment.schedule import NOTHING
    from regimes.experiment.store import open_store

    store = open_store(run)
    if store.layout["origin"].get("search"):  # its next trials recompute what they lack
        files, freed = remove_weights((), NOTHING, store)
    else:
        prepared = prepare(None, run, mixed=True)
        files, freed = remove_weights(prepared.stages, prepared.progress, prepared.store)
    typer.echo(f"{run}: removed {files} weight files, {size(freed)}")
