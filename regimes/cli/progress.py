"""Progress of a run: a bar in a terminal, plain lines elsewhere, and a summary at its end."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from regimes.cli.errors import INTERRUPTED
from regimes.cli.formatting import duration, stage_name
from regimes.errors import RunFailed
from regimes.plots.run_info import engine_line

if TYPE_CHECKING:
    from regimes.experiment.run import Prepared
    from regimes.experiment.stages.stage import Outcome, Stage
    from regimes.regime_map.acquisition import MapKnowledge

LINE_INTERVAL = 15.0  # seconds between plain lines


class RunProgress:
    """Progress bar over the stages of a run, with counts of finished cells and failures."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[cells]} cells, {task.fields[failures]} failed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=120,
        )
        self.task: Any = None
        self.open: dict[tuple[Any, ...], set[str]] = {}
        self.cells = 0
        self.failures = 0
        self.counted: dict[str, float] = {}
        self.last_line = time.monotonic()

    def start(self, prepared: Prepared) -> None:
        """Print what there is to do and start the bar."""
        for line in prepared.progress.damaged.values():
            self.console.print(f"damaged: {line}; will be recomputed", highlight=False, markup=False)
        if prepared.progress.todo:
            for line in (str(prepared.spec.numerics), f"engines: {engine_line(prepared.engine_facts)}"):
                self.console.print(line, highlight=False, markup=False)
        for stage in prepared.stages:
            if stage.kind != "train":
                self.open.setdefault(_cell(stage), set())
        for stage in prepared.progress.todo:
            if stage.kind != "train":
                self.open[_cell(stage)].add(stage.key)
        self.cells = sum(not keys for keys in self.open.values())
        todo = len(prepared.progress.todo)
        if prepared.progress.done or not todo:
            self.console.print(f"{len(prepared.progress.done)} stages done already, {todo} to do", highlight=False)
        total = sum(self._advance(stage) for stage in prepared.progress.todo)
        self.counted.clear()
        self.task = self.bar.add_task("starting", total=total, cells=self._count(), failures=0)
        self.bar.start()

    def __call__(self, stage: Stage, outcome: Outcome) -> None:
        """Count one finished or failed stage."""
        where = stage_name(stage.kind, stage.coords)
        keys = self.open.get(_cell(stage), set()) if stage.kind != "train" else set()
        if outcome.error is None and stage.key in keys:
            keys.discard(stage.key)
            self.cells += not keys
        if outcome.error is not None:
            self.failures += 1
            self.console.print(f"failed: {where}: {outcome.error}", highlight=False, markup=False)
        self.bar.update(
            self.task,
            advance=self._advance(stage),
            description=where,
            cells=self._count(),
            failures=self.failures,
        )
        if self.bar.disable and time.monotonic() - self.last_line > LINE_INTERVAL:
            self.last_line = time.monotonic()
            task = self.bar.tasks[0]
            share = task.completed / task.total if task.total else 1.0
            elapsed = task.elapsed or 0.0
            left = duration(elapsed / max(share, 1e-3) - elapsed)
            self.console.print(
                f"{share:4.0%}  {self._count()} cells, {self.failures} failed, about {left} left",
                highlight=False,
            )

    def _advance(self, stage: Stage) -> float:
        """The cost that a stage adds: snapshots of one training share their epochs."""
        training = getattr(stage, "training", None)
        if training is None:
            return stage.cost
        before = self.counted.get(training, 0.0)
        self.counted[training] = max(before, stage.cost)
        return max(0.0, stage.cost - before)

    def _count(self) -> str:
        return f"{self.cells}/{len(self.open)}"


def _cell(stage: Stage) -> tuple[Any, ...]:
    return tuple(sorted((name, value) for name, value in stage.coords.items() if name not in ("retrain_seed", "pair")))


def run_with_progress(sweep: Path | None, out: Path | None, options: dict[str, Any]) -> None:
    """Run a sweep under a progress bar and print a summary.

    Raises:
        RunFailed: some stages failed.
    """
    from regimes.experiment.run import run

    progress_bar = RunProgress()
    try:
        result = run(sweep, out, on_start=progress_bar.start, watch=progress_bar, **options)
    except KeyboardInterrupt:
        progress_bar.bar.stop()
        exit_interrupted("nothing finished is lost; ")
    finally:
        progress_bar.bar.stop()
    progress = result.progress
    typer.echo(
        f"{len(progress.done)} of {len(result.stages)} stages done in {duration(result.seconds)}: {result.folder}"
    )
    if progress.diverged:
        typer.echo(f"{len(progress.diverged)} of them diverged (loss not finite); see: regimes status {result.folder}")
    if progress.failed:
        raise RunFailed(_failures(result, f", {len(progress.blocked)} wait for them"))
    if progress.todo:
        raise RunFailed(f"{len(progress.todo)} stages remain; resume with the same command")
    typer.echo(f"next: regimes map {result.folder}")


def run_adaptively(sweep: Path, out: Path | None, budget: int | None, options: dict[str, Any]) -> None:
    """Run a sweep in rounds where the map is uncertain, and print how well the map is known.

    Raises:
        RunFailed: some stages failed.
    """
    from regimes.regime_map.run_adaptive import run_adaptive

    started = time.monotonic()
    try:
        adaptive = run_adaptive(sweep, out, budget=budget, say=_print_round, **options)
    except KeyboardInterrupt:
        exit_interrupted()
    result, (done, total) = adaptive.result, adaptive.cells
    if result.progress.failed:
        raise RunFailed(_failures(result))
    reason = (
        "the map has converged"
        if adaptive.converged
        else "every cell is done"
        if done == total
        else "the budget is spent"
    )
    typer.echo(f"{done} of {total} cells in {duration(time.monotonic() - started)}: {reason}: {result.folder}")
    if adaptive.history:
        typer.echo(f"  {_remaining_gain(adaptive.history[-1])}")
    typer.echo(f"next: regimes map {result.folder}")


def exit_interrupted(what: str = "") -> NoReturn:
    """Exit with 130 after Ctrl-C, saying how to resume."""
    command = shlex.join(["regimes", *sys.argv[1:]])
    print(f"\nregimes: interrupted; {what}resume with the same command: {command}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _failures(result: Any, more: str = "") -> str:
    failed = result.progress.failed
    return (
        f"{len(failed)} stages failed ({next(iter(failed.values()))}){more}; see: regimes status {result.folder}; "
        f"retry with: regimes run {result.folder} --retry-failed"
    )


def _print_round(done: int, total: int, knowledge: MapKnowledge | None) -> None:
    known = "" if knowledge is None else f"; {_remaining_gain(knowledge)}"
    print(f"up to {done} of {total} cells{known}", file=sys.stderr)


def _remaining_gain(knowledge: MapKnowledge) -> str:
    return (
        f"expected gain from the remaining cells: {knowledge.wrong:.1%} of the regime labels, {knowledge.regret:.1%} "
        "of the error"
    )
