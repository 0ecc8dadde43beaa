"""Worker processes of one search on shared studies; the trials of a worker that dies are requeued."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regimes.errors import RunFailed, UserError
from regimes.experiment.parent_watchdog import exit_with_parent
from regimes.experiment.warning_lines import send_warnings
from regimes.faults import user_error_of

if TYPE_CHECKING:
    import optuna

    from regimes.config.hpo import Hpo

MAX_WORKER_DEATHS = 3  # that a search survives
POLL_SECONDS = 0.5  # between two checks of the workers


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration sent to each worker.

    Attributes:
        folder: folder of the search, from which the plan is read.
        url: URL of the storage.
        devices: devices of the workers, in turn.
        batch: number of trials that it asks for together.
        ends: time (``time.time``) after which nothing new is started.
    """

    folder: Path
    url: str
    devices: tuple[str, ...]
    batch: int
    ends: float


def run_workers(
    config: WorkerConfig,
    spec: Hpo,
    studies: Sequence[optuna.Study],
    workers: int,
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Run worker processes on the studies of a search until nothing is left to start.

    Args:
        config: configuration sent to each worker.
        spec: the search's settings.
        studies: the studies of the search's phases.
        workers: number of processes.
        on_poll: called at every check of the workers.

    Raises:
        RunFailed: more than `MAX_WORKER_DEATHS` workers died, or one met a device fault.
        UserError: a worker raised one.
    """
    from regimes.hpo.requeue import requeue_dead_trials

    context = multiprocessing.get_context("spawn")
    deaths, messages = 0, context.SimpleQueue()
    warned: dict[Any, Any] = {}
    processes: list[Any] = []

    def start(place: int, number: int) -> Any:
        device = config.devices[place % len(config.devices)]
        process = context.Process(target=_worker, args=(config, spec, device, number, os.getpid(), messages))
        process.start()
        return process

    try:
        processes = [start(place, place) for place in range(workers)]
        while any(process.exitcode != 0 for process in processes):
            time.sleep(POLL_SECONDS)
            on_poll()
            _heed(messages, warned)
            for place, process in enumerate(processes):
                if process.exitcode not in (None, 0):
                    deaths += 1
                    if deaths > MAX_WORKER_DEATHS:
                        raise RunFailed(
                            f"workers died {deaths} times, the last with exit code {process.exitcode}, perhaps out of "
                            "memory; run the same command with fewer --workers to resume"
                        )
                    for study in studies:
                        requeue_dead_trials(study)
                    processes[place] = start(place, workers * deaths + place)
        _heed(messages, warned)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            process.join()


def _heed(messages: Any, warned: dict[Any, Any]) -> None:
    """Issue the workers' warnings, and raise their errors."""
    while not messages.empty():
        message = messages.get()
        if isinstance(message, UserError):
            raise message
        message.issue(warned)


def _worker(config: WorkerConfig, spec: Hpo, device: str, number: int, command: int, messages: Any) -> None:
    """Main function of a worker process."""
    send_warnings(messages.put)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C and ends its workers
    signal.signal(signal.SIGTERM, _leave)
    exit_with_parent(command)
    import optuna
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        deadline = time.monotonic() + config.ends - time.time()
        (_work_on_pruned if spec.objective == "pruned" else _work_on_full)(config, spec, device, number, deadline)
    except KeyboardInterrupt:
        os._exit(143)
    except Exception as error:
        said = user_error_of(error)
        if said is None:
            raise
        messages.put(said)
        os._exit(said.exit_code)


def _work_on_full(config: WorkerConfig, spec: Hpo, device: str, number: int, deadline: float) -> None:
    """Work on the studies of a search with the objective "full"."""
    from regimes.hpo.optimize_loop import study_of
    from regimes.hpo.optuna_study import open_storage
    from regimes.hpo.plan import context_of, load_plan
    from regimes.hpo.promotion import StudyRunner, phase_of, phases
    from regimes.hpo.requeue import works_beside

    context = context_of(spec, device, config.folder)
    plan = load_plan(spec, context, config.folder)
    assert plan is not None
    storage = open_storage(config.url)
    studies = [study_of(phase_of(plan, phase), context, storage, number) for phase in phases(plan)]
    runner = StudyRunner(plan, context, studies, config.folder, config.batch, deadline)
    runner.run()
    while time.monotonic() < deadline and any(works_beside(study) for study in studies):
        time.sleep(POLL_SECONDS)  # what another worker finishes may make promotions due
        if not runner.is_idle:
            runner.run()


def _work_on_pruned(config: WorkerConfig, spec: Hpo, device: str, number: int, deadline: float) -> None:
    """Work on the study of a search with the objective "pruned"."""
    from regimes.hpo.optimize_loop import Limits, run_trials
    from regimes.hpo.optuna_study import open_storage
    from regimes.hpo.pruned.cell_runner import CellRunner
    from regimes.hpo.pruned.pruned_search import study_of
    from regimes.hpo.pruned.search_folder import open_cells

    cells, engines = open_cells(spec, config.folder, device)
    study = study_of(cells.spec, cells.context, open_storage(config.url), number)
    runner = CellRunner(cells.spec, cells, engines, None, deadline)
    run_trials(study, runner, config.batch, Limits(spec.trials, deadline))


def _leave(*_: Any) -> None:
    raise KeyboardInterrupt  # which stages do not take for a failure; running trials are marked unfinished
