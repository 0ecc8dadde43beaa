"""``regimes discover``: find smaller networks by complexity-aware training."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.formatting import duration
from regimes.cli.options import Device, Json, Set
from regimes.errors import RunFailed

if TYPE_CHECKING:
    from regimes.config.discovery_file import DiscoveryConfig
    from regimes.experiment.claims import Claims
    from regimes.experiment.run_discovery import DiscoveryTask

Found = dict[str, Any] | RunFailed
HEAD = ("discovery", "test error", "MACs", "parameters", "units", "blocks", "training", "1000 inputs")
POLL_SECONDS = 0.5  # between two checks for warnings of workers
LINE_INTERVAL = 15.0  # seconds between progress lines where they do not replace each other


@report_user_errors
def discover(
    file: Annotated[Path, typer.Argument(metavar="DISCOVER.toml", help="The discovery file; see sweeps/README.md.")],
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: runs/NAME).")] = None,
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Number of concurrent trainings, one core each.")] = 1,
    changes: Set = [],  # noqa: B006 - typer's way to declare an empty default
    as_json: Json = False,
) -> None:
    """Find smaller networks: channels and residual blocks are removed during training. Resumes where it stopped."""
    from regimes.cli.progress import exit_interrupted
    from regimes.config.discovery_file import read_discovery_file
    from regimes.experiment.claims import Claims
    from regimes.experiment.run_discovery import DiscoveryTask, checked_context_of, tasks

    config = read_discovery_file(file, changes)
    folder = out or Path("runs") / config.name
    todo = tasks(config, folder)
    context = checked_context_of(config, device, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Claims(folder, workers) as claims:
            if workers > 1 and len(todo) > 1:
                found = _in_pool(config, todo, device, workers, claims)
            else:
                found = {task.name: _one(task, context) for task in claims.in_turn(todo, DiscoveryTask.claim)}
    except KeyboardInterrupt:
        exit_interrupted()
    results = [(task, found[task.name]) for task in todo]
    _show([(task, each) for task, each in results if not isinstance(each, RunFailed)], folder, config.name, as_json)
    failed = [str(each) for _, each in results if isinstance(each, RunFailed)]
    if failed:
        raise RunFailed(*failed)


def _show(done: list[tuple[DiscoveryTask, dict[str, Any]]], folder: Path, name: str, as_json: bool) -> None:
    from regimes.plots.discovery_plots import draw_discovery, draw_front

    for task, record in done:
        draw_discovery(record, task.folder)
    if len(done) > 1:
        draw_front({name: [record for _, record in done]}, folder)
    if as_json:
        shown = [{**record, "folder": str(task.folder)} for task, record in done]
        typer.echo(json.dumps([{key: each for key, each in one.items() if key != "history"} for one in shown]))
    elif done:
        _print(done)
        typer.echo(f"wrote {folder}{'/front.png' if len(done) > 1 else ''}")


def _one(task: DiscoveryTask, context: Any) -> Found:
    from regimes.experiment.run_discovery import run_task

    try:
        return run_task(task, context, DiscoveryProgress())
    except RunFailed as error:  # continue with the others
        return error


class DiscoveryProgress:
    """A line per epoch: in a terminal it replaces the previous one, otherwise at most one per `LINE_INTERVAL`."""

    def __init__(self, alone: bool = True) -> None:
        self.replace = alone and sys.stderr.isatty()
        self.last_line = time.monotonic() if not alone else 0.0

    def __call__(self, task: DiscoveryTask, row: dict[str, Any]) -> None:
        epochs = task.config.recipe.epochs
        line = (
            f"{task.name}: epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
            f"val error {row['val_error']:.2%}  expected MACs {row['macs']:.1%}, parameters {row['params']:.1%}  "
            f"{row['units']} units, {row['blocks']} blocks  {row['seconds']:.2f} s"
        )
        if self.replace:
            print(f"\r\033[K{line}", end="\n" if row["epoch"] == epochs else "", file=sys.stderr, flush=True)
        elif row["epoch"] == epochs or time.monotonic() - self.last_line > LINE_INTERVAL:
            self.last_line = time.monotonic()
            print(line, file=sys.stderr, flush=True)


def _in_pool(
    wanted: DiscoveryConfig, todo: list[DiscoveryTask], device: str, workers: int, claims: Claims
) -> dict[str, Found]:
    """Run the trainings in worker processes, one thread each; return {name: result}."""
    import multiprocessing

    spawn, count = multiprocessing.get_context("spawn"), min(workers, len(todo))
    messages, warned = spawn.SimpleQueue(), dict[Any, Any]()
    given = (wanted, device, os.getpid(), messages)
    left, found = list(todo), dict[str, Found]()
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=_set_up, initargs=given) as pool:
        running: dict[Future[Found], DiscoveryTask] = {}
        try:
            while left or running:
                for task in list(left):
                    if len(running) < count and claims.take(task.claim()):
                        left.remove(task)
                        running[pool.submit(_work, task)] = task
                done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                while not messages.empty():
                    messages.get().issue(warned)
                for future in done:
                    task = running.pop(future)
                    found[task.name] = future.result()
                    claims.release(task.claim())
                    said = f"{_in_short(found[task.name])}, {len(found)} of {len(todo)} done"
                    print(f"{task.name}: {said}", file=sys.stderr, flush=True)
                if left and not running:
                    time.sleep(POLL_SECONDS)  # another command has the rest
        except BrokenProcessPool as error:
            again = "out of memory? Resume with the same command and fewer --workers"
            raise RunFailed(f"a worker was killed after {len(found)} of {len(todo)} trainings: {again}") from error
        except BaseException:
            for process in list(pool._processes.values()):  # a training does not end by itself
                process.terminate()
            raise
    return found


def _in_short(found: Found) -> str:
    if isinstance(found, RunFailed):
        return "failed"
    return f"test error {found['test_error']:.2%}, MACs {found['macs'] / found['full_macs']:.1%}"


_CONTEXTS: list[Any] = []  # one for each worker process


def _set_up(wanted: DiscoveryConfig, device: str, command: int, messages: Any) -> None:
    from regimes.experiment.parent_watchdog import exit_with_parent
    from regimes.experiment.run_discovery import context_of
    from regimes.experiment.warning_lines import send_warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its workers
    exit_with_parent(command)
    send_warnings(messages.put)
    _CONTEXTS.append(context_of(wanted, device, Path()))


def _work(task: DiscoveryTask) -> Found:
    from regimes.experiment.run_discovery import run_task

    try:
        return run_task(task, _CONTEXTS[0], DiscoveryProgress(alone=False))
    except RunFailed as error:
        return error


def _print(done: list[tuple[DiscoveryTask, dict[str, Any]]]) -> None:
    rows = [HEAD]
    for task, record in done:
        rows.append(
            (
                task.name,
                f"{record['test_error']:.2%}",
                f"{record['macs'] / record['full_macs']:.1%}",
                f"{record['params'] / record['full_params']:.1%}",
                str(sum(left for left, _ in record["widths"].values())),
                f"{sum(record['blocks'].values())}/{len(record['blocks'])}",
                duration(record["train_seconds"]),
                f"{1000 * record['inference_seconds']:.0f} ms",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for task, record in done:
        if len(done) == 1:
            layers = "  ".join(f"{name} {left}/{whole}" for name, (left, whole) in record["widths"].items())
            typer.echo(f"units left: {layers}")
            if record["blocks"]:
                typer.echo(
                    f"blocks left: {' '.join(name for name, left in record['blocks'].items() if left) or 'none'}"
                )
        if record["message"]:
            typer.echo(f"{task.name}: {record['message']}")
