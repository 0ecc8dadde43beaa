"""Watch a run: a progress bar in a terminal, plain lines elsewhere; what to do next when it ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from regimes.cli.show import duration, place
from regimes.errors import RunFailed, UserError

if TYPE_CHECKING:
    from regimes.experiment.prepare import Prepared
    from regimes.experiment.stages.stage import Outcome, Stage
    from regimes.regime_map.acquisition import MapKnowledge

EVERY = 15.0  # seconds between plain lines


class Watcher:
    """Counts what is finished and shows it."""

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
        self.way: dict[str, float] = {}
        self.spoken = time.monotonic()

    def start(self, prepared: Prepared) -> None:
        """Say what there is to do."""
        for line in prepared.progress.damaged.values():
            self.console.print(f"damaged: {line}; it is done again", highlight=False, markup=False)
        if prepared.progress.todo:
            self.console.print(f"{prepared.spec.numerics}", highlight=False, markup=False)
        for stage in prepared.stages:
            if stage.kind != "train":
                self.open.setdefault(_cell(stage), set())
        for stage in prepared.progress.todo:
            if stage.kind != "train":
                self.open[_cell(stage)].add(stage.key)
        self.cells = sum(not keys for keys in self.open.values())
        todo = len(prepared.progress.todo)
        if prepared.progress.done or not todo:
            self.console.print(f"{len(prepared.progress.done)} stages are done already, {todo} to do", highlight=False)
        total = sum(self._advance(stage) for stage in prepared.progress.todo)
        self.way.clear()
        self.task = self.bar.add_task("starting", total=total, cells=self._count(), failures=0)
        self.bar.start()

    def __call__(self, stage: Stage, outcome: Outcome) -> None:
        """Take note of one finished or failed stage."""
        where = place(stage.kind, stage.at)
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
        if self.bar.disable and time.monotonic() - self.spoken > EVERY:
            self.spoken = time.monotonic()
            task = self.bar.tasks[0]
            share = task.completed / task.total if task.total else 1.0
            elapsed = task.elapsed or 0.0
            left = duration(elapsed / max(share, 1e-3) - elapsed)
            self.console.print(
                f"{share:4.0%}  {self._count()} cells, {self.failures} failed, about {left} left",
                highlight=False,
            )

    def _advance(self, stage: Stage) -> float:
        """The work a stage adds: snapshots of one training share their way."""
        training = getattr(stage, "training", None)
        if training is None:
            return stage.work
        before = self.way.get(training, 0.0)
        self.way[training] = max(before, stage.work)
        return max(0.0, stage.work - before)

    def _count(self) -> str:
        return f"{self.cells}/{len(self.open)}"


def _cell(stage: Stage) -> tuple[Any, ...]:
    return tuple(sorted((name, value) for name, value in stage.at.items() if name not in ("retrain_seed", "pair")))


def run_watched(sweep: Any, out: Path | None, **how: Any) -> None:
    """Run a sweep under a progress bar and say what came of it.

    Raises:
        RunFailed: some cells failed.
    """
    from regimes.experiment.run import run

    watcher = Watcher()
    try:
        result = run(sweep, out, on_start=watcher.start, watch=watcher, **how)
    except KeyboardInterrupt:
        watcher.bar.stop()
        again = "the same command"
        print(
            f"regimes: stopped; nothing finished is lost. Go on with {again}: regimes {' '.join(sys.argv[1:])}",
            file=sys.stderr,
        )
        sys.exit(130)
    finally:
        watcher.bar.stop()
    progress = result.progress
    typer.echo(
        f"{len(progress.done)} of {len(result.stages)} stages done in {duration(result.seconds)}: {result.folder}"
    )
    if progress.diverged:
        typer.echo(
            f"{progress.diverged} of them diverged: their loss was not finite; see: regimes status {result.folder}"
        )
    if progress.failed:
        first = next(iter(progress.failed.values()))
        raise RunFailed(
            f"{len(progress.failed)} stages failed ({first}), {len(progress.blocked)} wait for them; "
            f"see: regimes status {result.folder}; do them again: regimes retry {result.folder}"
        )
    if progress.todo:
        raise RunFailed(f"{len(progress.todo)} stages are still to do; go on with the same command")
    typer.echo(f"next: regimes map {result.folder}")


def retry_watched(folder: Path, **how: Any) -> None:
    """Do a run's failed cells again, under a progress bar."""
    run_watched(None, folder, retry_failed=True, **how)


def run_rounds(sweep: Path, out: Path | None, budget: int | None, adaptive: bool, how: dict[str, Any]) -> None:
    """Run a sweep in rounds where the map is uncertain, and say how well it is known.

    Raises:
        RunFailed: some cells failed.
    """
    from regimes.regime_map.run_adaptive import run_adaptive

    if not adaptive:
        raise UserError("--budget belongs to --adaptive; add it, or leave --budget out")
    started = time.monotonic()
    try:
        found = run_adaptive(sweep, out, budget=budget, say=_say_round, **how)
    except KeyboardInterrupt:
        print(f"regimes: stopped; go on with the same command: regimes {' '.join(sys.argv[1:])}", file=sys.stderr)
        sys.exit(130)
    result, (done, of) = found.result, found.cells
    if result.progress.failed:
        first = next(iter(result.progress.failed.values()))
        raise RunFailed(
            f"{len(result.progress.failed)} stages failed ({first}); see: regimes status {result.folder}; "
            f"do them again: regimes retry {result.folder}"
        )
    why = "the map is known" if found.enough else "every cell is done" if done == of else "the budget is spent"
    typer.echo(f"{done} of {of} cells in {duration(time.monotonic() - started)}: {why}: {result.folder}")
    if found.history:
        typer.echo(f"  {_how_known(found.history[-1])}")
    typer.echo(f"next: regimes map {result.folder}")


def _say_round(done: int, of: int, known: MapKnowledge | None) -> None:
    print(f"up to {done} of {of} cells" + ("" if known is None else f"; {_how_known(known)}"), file=sys.stderr)


def _how_known(known: MapKnowledge) -> str:
    return f"the rest may mend {known.wrong:.1%} of the regimes and save {known.regret:.1%} of the error"
