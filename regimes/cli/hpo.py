"""What ``regimes hpo`` does and shows."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from regimes.cli.show import duration

if TYPE_CHECKING:
    import optuna
    from optuna.trial import Trial

    from regimes.hpo.fidelities import Segment
    from regimes.hpo.fidelity_trainer import FidelityResult
    from regimes.hpo.plan import Plan

EVERY = 5.0  # seconds between two lines of progress, where they are not written over each other


def show_hpo(
    file: Path,
    changes: list[str],
    trials: int | None,
    out: Path | None,
    chart: Path | None,
    storage: str | None,
    timeout: float | None,
    workers: int,
    device: str,
    take_over: bool,
    as_json: bool,
) -> None:
    """Do, or finish, a search; print and draw what came of it."""
    import optuna

    from regimes.config.hpo_file import read_hpo
    from regimes.hpo.search import SearchOptions, search
    from regimes.plots.hpo_plots import draw_search

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spec = read_hpo(file, changes)
    if trials is not None:
        spec = spec.model_copy(update={"trials": trials})
    folder = out or Path("runs") / spec.name
    asked = SearchOptions(folder, chart, storage, math.inf if timeout is None else timeout, workers, device, take_over)
    progress = _Progress(spec.trials)
    try:
        result = search(spec, asked, progress.say, progress.stretch, progress.look)
    except KeyboardInterrupt:
        again = shlex.join(["regimes", *sys.argv[1:]])
        print(f"\nregimes: stopped; go on with the same command: {again}", file=sys.stderr)
        sys.exit(130)
    progress.end()
    draw_search(result, folder)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print(result, folder)


class _Progress:
    """A line: trials done, rungs climbed, the best so far, seconds spent."""

    def __init__(self, trials: int) -> None:
        self.trials, self.replace = trials, sys.stderr.isatty()
        self.started = self.spoken = time.monotonic()
        self.open = False

    def say(self, text: str) -> None:
        self.end()
        print(text, file=sys.stderr, flush=True)

    def stretch(self, trial: Trial, stretch: Segment, value: FidelityResult) -> None:
        """After a stretch of a trial, in this process."""
        self._line(trial.study)

    def look(self, study: optuna.Study, plan: Plan) -> None:
        """Every now and then, where others work."""
        self._line(study)

    def _line(self, study: optuna.Study) -> None:
        if time.monotonic() - self.spoken < (0.2 if self.replace else EVERY):
            return
        from regimes.hpo.savings import rows_of
        from regimes.hpo.trial_attrs import PREFIX

        self.spoken = time.monotonic()
        trials = study.get_trials(deepcopy=False)
        done = [each for each in trials if each.state.is_finished()]
        climbed = Counter(density for each in trials for density in {row["density"] for row in rows_of(each)})
        values = [each.value for each in done if each.state.name == "COMPLETE" and each.value is not None]
        rungs = ", ".join(f"{'full' if d == 1 else f'{d:g}'} {n}" for d, n in sorted(climbed.items()))
        best = f"{min(values):.4f}" if values else "-"
        spent = duration(time.monotonic() - self.started)
        promoted = len({each.user_attrs.get(f"{PREFIX}promoted") for each in trials} - {None})
        count = f"{len(done)}/{promoted} promoted" if promoted else f"{len(done)}/{self.trials}"
        line = f"{count} trials  on rungs: {rungs or 'none yet'}  best {best}  {spent}"
        self.open = self.replace
        start, end = ("\r\033[K", "") if self.replace else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.open:
            print(file=sys.stderr)
            self.open = False


def _print(result: dict[str, Any], folder: Path) -> None:
    from regimes.hpo.savings import in_words

    winner = result["winner"]
    values = "  ".join(f"{name} {value:.4g}" for name, value in winner["params"].items())
    typer.echo(f"best: trial {winner['trial']}, validation {winner['value']:.4f}:  {values}")
    spread = f" ± {winner['test_error_sd']:.2%}" if winner["test_error_sd"] is not None else ""
    tested = "diverged" if winner["test_error"] is None else f"{winner['test_error']:.2%}{spread}"
    typer.echo(f"test error of {len(winner['runs'])} fresh trainings: {tested}")
    for line in in_words(result["savings"]):
        typer.echo(line)
    for name, stopped in result["stopped"].items():
        said = ", ".join(f"{count} at step {step}" for step, count in stopped.items()) or "none"
        typer.echo(f"stopped in {name}: {said}")
    for each in result["failed"]:
        typer.echo(f"trial {each['trial']} failed: {each['why']}")
    deployed = winner["deployment"]
    if deployed and deployed["density"] is not None:
        typer.echo(
            f"to deploy: density {deployed['density']:g}, regime {deployed['regime']}, expected test error "
            f"{deployed['expected_error']:.2%} ({deployed['reason']}); the map would go {deployed['direction']}"
        )
    elif deployed:
        typer.echo(f"to deploy: the map does not say: {deployed['reason']}")
    typer.echo(f"wrote {folder}/result.json, {folder}/search.png")
