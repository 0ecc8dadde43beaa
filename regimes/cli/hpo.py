"""``regimes hpo``: search hyperparameters on cheaper trainings."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.formatting import duration
from regimes.cli.options import Devices, Json, Set
from regimes.cli.status_line import StatusLine

if TYPE_CHECKING:
    from regimes.config.hpo import Hpo
    from regimes.hpo.progress import SearchState
    from regimes.hpo.search_options import SearchOptions


@report_user_errors
def hpo(
    file: Annotated[Path, typer.Argument(metavar="HPO.toml", help="The search file; see sweeps/README.md.")],
    chart: Annotated[
        Path | None, typer.Option("--map", metavar="RUN|GRID.nc", help="The regime map that guides the search.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Storage of the study: FILE.log, sqlite:///..., postgresql://...")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials, earlier ones included.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Start no trial after this many seconds (an unfinished map is completed first)."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: runs/NAME).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes working on the study, one core each (default: one per device).")
    ] = None,
    device: Devices = "cpu",
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Requeue trials held by other machines (when those are gone).")
    ] = False,
    changes: Set = [],  # noqa: B006 - typer's way to declare an empty default
    as_json: Json = False,
) -> None:
    """Search hyperparameters, of a network or of one that will be pruned, or resume a search."""
    from regimes.config.hpo_file import read_hpo
    from regimes.experiment.devices import devices_of
    from regimes.hpo.search_options import SearchOptions

    spec = read_hpo(file, changes)
    spec = spec if trials is None else spec.model_copy(update={"trials": trials})
    folder, limit = out or Path("runs") / spec.name, math.inf if timeout is None else timeout
    processes = workers or len(devices_of(device))
    options = SearchOptions(folder, chart, storage, limit, processes, device, take_over, file)
    if spec.objective == "pruned":
        from regimes.cli.pruned_output import print_pruned, searched_pruned

        result, printed = searched_pruned(spec, options), print_pruned
    else:
        result, printed = _searched(spec, options), _print
    if as_json:
        typer.echo(json.dumps(result))
    else:
        printed(result, folder)


def _searched(spec: Hpo, options: SearchOptions) -> dict[str, Any]:
    import optuna

    from regimes.cli.progress import exit_interrupted
    from regimes.hpo.search import search
    from regimes.plots.hpo_plots import draw_search

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    progress = SearchProgress()
    try:
        result = search(spec, options, progress.message, look=progress.look)
    except KeyboardInterrupt:
        exit_interrupted()
    progress.end()
    draw_search(result, options.folder)
    return result


class SearchProgress(StatusLine):
    """A progress line of what is done and left, and a line for every full training."""

    told: set[int] | None = None  # numbers of full trainings

    def look(self, state: SearchState) -> None:
        """Called at the start, after each segment of a trial, and periodically while worker processes run."""
        full = state.full_trainings
        if self.told is None:
            self.told = {each.number for each in full}  # by an earlier command
        for trial in full:
            if trial.number not in self.told:
                self.told.add(trial.number)
                self.message(state.full_training(trial))
        if self.is_due():
            left = state.seconds_left
            line = f"{state.line()}, {duration(time.monotonic() - self.started)}"
            self.show(line + (f", about {duration(left)} left" if left is not None else ""))


def _print(result: Mapping[str, Any], folder: Path) -> None:
    from regimes.hpo.progress import number_in_words, settings_in_words, value_in_words
    from regimes.hpo.savings import in_words
    from regimes.plots.hpo_plots import CLASSES

    winner, units = result["winner"], result.get("units", CLASSES)
    value = value_in_words(winner["value"], result["value"], units)
    typer.echo(f"best: {settings_in_words(winner['params'])}: {value}")
    error = units["error"]
    tested = " ± ".join(
        number_in_words(winner[name], error) for name in ("test_error", "test_error_sd") if winner[name] is not None
    )
    typer.echo(f"test {error['title']} of {len(winner['runs'])} new trainings: {tested or 'diverged'}")
    for line in in_words(result["savings"]):
        typer.echo(line)
    for each in result["failed"]:
        typer.echo(f"trial {each['trial']} failed: {each['why']}")
    deployed = winner["deployment"]
    if deployed and deployed["density"] is not None:
        expected = f"expected test {error['title']} {number_in_words(deployed['expected_error'], error)}"
        typer.echo(
            f"to deploy: density {deployed['density']:g}, regime {deployed['regime']}, {expected} "
            f"({deployed['reason']}); the map advises: {deployed['direction']}"
        )
    elif deployed:
        typer.echo(f"to deploy: the map gives no advice: {deployed['reason']}")
    typer.echo(f"wrote {folder}/result.json, {folder}/search.png")
