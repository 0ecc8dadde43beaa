"""Output of ``regimes hpo`` for the objective "pruned"."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from regimes.cli.formatting import duration
from regimes.cli.status_line import StatusLine

if TYPE_CHECKING:
    import optuna

    from regimes.config.hpo import Hpo
    from regimes.hpo.search_options import SearchOptions


def searched_pruned(spec: Hpo, options: SearchOptions) -> dict[str, Any]:
    """Run a search with the objective "pruned", with its progress on stderr, and draw it; returns the result."""
    import optuna

    from regimes.cli.progress import exit_interrupted
    from regimes.hpo.pruned.pruned_search import search_pruned
    from regimes.plots.pruned_search_plots import draw_pruned_search

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    progress = PrunedProgress(spec.trials)
    try:
        result = search_pruned(spec, options, progress.message, progress.look)
    except KeyboardInterrupt:
        exit_interrupted()
    progress.end()
    draw_pruned_search(result, options.folder)
    return result


class PrunedProgress(StatusLine):
    """A progress line: trials done, the best value at each density, time left."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self.trials = trials
        self.before: int | None = None  # trials that earlier commands have finished

    def look(self, study: optuna.Study, what: Mapping[str, Any]) -> None:
        """Show the line anew, unless it was shown just before; ``what``: title and unit of the values."""
        from regimes.hpo.progress import number_in_words
        from regimes.hpo.pruned.cell_runner import rows

        if not self.is_due():
            return
        finished = rows(study)
        self.before = len(finished) if self.before is None else self.before
        best: dict[float, float] = {}
        for trial, row in finished:
            if trial.state.name == "COMPLETE":
                best[row["density"]] = min(best.get(row["density"], trial.values[0]), trial.values[0])
        said = ", ".join(f"{number_in_words(value, what)} at density {each:g}" for each, value in sorted(best.items()))
        line = f"{len(finished)}/{self.trials} trials  best validation {what['title']}: {said or 'none yet'}"
        self.show(line + self._left(len(finished)))

    def _left(self, done: int) -> str:
        new = done - (self.before or 0)
        if new < 1 or done >= self.trials:
            return ""
        seconds = (time.monotonic() - self.started) / new * (self.trials - done)
        return f"  about {duration(seconds)} left"


def print_pruned(result: Mapping[str, Any], folder: Path) -> None:
    """Print the result of a search for pruned networks in plain words."""
    from regimes.hpo.progress import number_in_words

    what, error = result["units"][result["value"]], result["units"]["error"]
    front = len(result["densities"]) > 1
    if front:
        trials = counted(len(result["best"]), "trial")
        typer.echo(f"front of validation {what['title']} against {result['against']}, {trials}:")
    for best in result["best"]:
        values = "  ".join(f"{name} {best['params'][name]:.4g}" for name in result["space"])
        cost = f", {best['cost']:.4g} {result['against_unit']}" if front and result["against"] != "density" else ""
        head = f"density {best['density']:g}{cost}" if front else f"best at density {best['density']:g}"
        value = f"validation {what['title']} {number_in_words(best['value'], what)}"
        typer.echo(f"{head}: trial {best['trial']}, {value}:  {values}")
        test, spread = best["test_error"], best["test_error_sd"]
        said = "all diverged" if test is None else number_in_words(test, error)
        said += f" ± {number_in_words(spread, error)}" if spread is not None else ""
        typer.echo(f"  test {error['title']} of {len(best['test_errors'])} new trainings: {said}")
    if front and result["against"] == "density":
        _print_omitted(result, what)
    _print_spending(result["spending"])
    failed = [each for each in result["trials"] if each["why"]]
    for each in failed:
        values = ", ".join(f"{name} {value:.4g}" for name, value in each["params"].items())
        typer.echo(f"trial {each['trial']} ({values}): {each['why']}")
    typer.echo(f"wrote {folder}/result.json, {folder}/search.png; every cell: regimes export {folder} --to csv")


def _print_omitted(result: Mapping[str, Any], what: Mapping[str, Any]) -> None:
    """Say of each density that is not on the front what its best trial has."""
    from regimes.hpo.progress import number_in_words

    on_front = {each["density"] for each in result["best"]}
    for density in result["densities"]:
        if density not in on_front:
            here = [each for each in result["trials"] if each["values"] and each["params"]["density"] == density]
            best = min(here, key=lambda each: each["values"][0], default=None)
            said = "no trial finished"
            if best is not None:
                value = number_in_words(best["values"][0], what)
                said = f"not better than a lower one; trial {best['trial']}, {what['title']} {value}"
            typer.echo(f"density {density:g}: {said}")


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, "1 trial" or "2 trials"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _print_spending(facts: Mapping[str, Any]) -> None:
    own = facts["trials"] - facts["adopted"]
    if facts["adopted"]:
        typer.echo(f"{counted(facts['adopted'], 'trial')} taken from the map, at no cost")
    if own and facts["alone_seconds"]:
        saved = 1 - facts["seconds"] / facts["alone_seconds"]
        typer.echo(
            f"{counted(own, 'trial')} from {counted(facts['trainings'], 'dense training')}: training, pruning and "
            f"measuring took {duration(facts['seconds'])}, all workers; with a dense training for each trial "
            f"{duration(facts['alone_seconds'])} "
            + (f"({saved:.0%} saved by sharing)" if saved >= 0.005 else "(no time saved by sharing)")
        )
    if facts["asked"] > facts["trials"]:
        typer.echo(f"time was up after {facts['trials']} of {facts['asked']} trials; the same command goes on")
