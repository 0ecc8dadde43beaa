"""``regimes hpo``: search hyperparameters on small proxies."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.formatting import duration
from regimes.cli.options import Devices, Json, Set

if TYPE_CHECKING:
    import optuna
    from optuna.trial import Trial

    from regimes.config.hpo import Hpo
    from regimes.hpo.fidelities import Segment
    from regimes.hpo.fidelity_trainer import FidelityResult
    from regimes.hpo.plan import Plan
    from regimes.hpo.search_options import SearchOptions

LINE_INTERVAL = 5.0  # seconds between progress lines where they do not replace each other
REDRAW_INTERVAL = 0.2  # seconds between redraws in a terminal


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
    """Search hyperparameters on small proxies of the network, or resume a search."""
    import optuna

    from regimes.cli.progress import exit_interrupted
    from regimes.config.hpo_file import read_hpo
    from regimes.experiment.devices import devices_of
    from regimes.hpo.search import search
    from regimes.hpo.search_options import SearchOptions
    from regimes.plots.hpo_plots import draw_search

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spec = read_hpo(file, changes)
    if trials is not None:
        spec = spec.model_copy(update={"trials": trials})
    folder = out or Path("runs") / spec.name
    limit = math.inf if timeout is None else timeout
    processes = workers or len(devices_of(device))
    options = SearchOptions(folder, chart, storage, limit, processes, device, take_over)
    if spec.objective == "pruned":
        _search_pruned(spec, options, as_json)
        return
    progress = SearchProgress(spec.trials)
    try:
        result = search(spec, options, progress.message, progress.segment, progress.poll)
    except KeyboardInterrupt:
        exit_interrupted()
    progress.end()
    draw_search(result, folder)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print(result, folder)


def _search_pruned(spec: Hpo, options: SearchOptions, as_json: bool) -> None:
    from regimes.cli.progress import exit_interrupted
    from regimes.cli.pruned_output import PrunedProgress, print_pruned
    from regimes.hpo.pruned.pruned_search import search_pruned
    from regimes.plots.pruned_search_plots import draw_pruned_search

    progress = PrunedProgress(spec.trials)
    try:
        result = search_pruned(spec, options, progress.message, progress.look)
    except KeyboardInterrupt:
        exit_interrupted()
    progress.end()
    draw_pruned_search(result, options.folder)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_pruned(result, options.folder)


class SearchProgress:
    """A progress line: trials done, trials per fidelity, the best value, seconds spent."""

    def __init__(self, trials: int) -> None:
        self.trials, self.replace = trials, sys.stderr.isatty()
        self.started = self.last_line = time.monotonic()
        self.open = False

    def message(self, text: str) -> None:
        self.end()
        print(text, file=sys.stderr, flush=True)

    def segment(self, trial: Trial, segment: Segment, value: FidelityResult) -> None:
        """Called after each segment of a trial in this process."""
        self._line(trial.study)

    def poll(self, study: optuna.Study, plan: Plan) -> None:
        """Called periodically while worker processes run."""
        self._line(study)

    def _line(self, study: optuna.Study) -> None:
        if time.monotonic() - self.last_line < (REDRAW_INTERVAL if self.replace else LINE_INTERVAL):
            return
        from regimes.hpo.savings import rows_of
        from regimes.hpo.trial_attrs import PREFIX

        self.last_line = time.monotonic()
        trials = study.get_trials(deepcopy=False)
        done = [each for each in trials if each.state.is_finished()]
        climbed = Counter(density for each in trials for density in {row["density"] for row in rows_of(each)})
        values = [each.value for each in done if each.state.name == "COMPLETE" and each.value is not None]
        rungs = ", ".join(f"{'full' if d == 1 else f'{d:g}'} {n}" for d, n in sorted(climbed.items()))
        best = f"{min(values):.4f}" if values else "-"
        spent = duration(time.monotonic() - self.started)
        promoted = len({each.user_attrs.get(f"{PREFIX}promoted") for each in trials} - {None})
        count = f"{len(done)}/{promoted} promoted" if promoted else f"{len(done)}/{self.trials}"
        line = f"{count} trials  per density: {rungs or 'none yet'}  best {best}  {spent}"
        self.open = self.replace
        start, end = ("\r\033[K", "") if self.replace else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.open:
            print(file=sys.stderr)
            self.open = False


def _text(value: float, error: Mapping[str, Any]) -> str:
    if error["fraction"]:
        return f"{value:.2%}"
    return f"{value:.4g}{'' if error['unit'] in ('1', 'loss') else ' ' + error['unit']}"


def _print(result: dict[str, Any], folder: Path) -> None:
    from regimes.hpo.savings import in_words
    from regimes.plots.hpo_plots import CLASSES

    winner = result["winner"]
    values = "  ".join(f"{name} {value:.4g}" for name, value in winner["params"].items())
    typer.echo(f"best: trial {winner['trial']}, validation {winner['value']:.4f}:  {values}")
    error = result.get("units", CLASSES)["error"]
    tested = " ± ".join(
        _text(winner[name], error) for name in ("test_error", "test_error_sd") if winner[name] is not None
    )
    typer.echo(f"test {error['title']} of {len(winner['runs'])} new trainings: {tested or 'diverged'}")
    for line in in_words(result["savings"]):
        typer.echo(line)
    for name, stopped in result["stopped"].items():
        said = ", ".join(f"{count} at step {step}" for step, count in stopped.items()) or "none"
        typer.echo(f"stopped in {name}: {said}")
    for each in result["failed"]:
        typer.echo(f"trial {each['trial']} failed: {each['why']}")
    deployed = winner["deployment"]
    if deployed and deployed["density"] is not None:
        expected = f"expected test {error['title']} {_text(deployed['expected_error'], error)}"
        typer.echo(
            f"to deploy: density {deployed['density']:g}, regime {deployed['regime']}, {expected} "
            f"({deployed['reason']}); the map advises: {deployed['direction']}"
        )
    elif deployed:
        typer.echo(f"to deploy: the map gives no advice: {deployed['reason']}")
    typer.echo(f"wrote {folder}/result.json, {folder}/search.png")
