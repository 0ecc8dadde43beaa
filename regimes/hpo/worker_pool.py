"""Workers of one search: processes that share a study; one that dies is noticed, and what it held is done again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regimes.errors import RunFailed, UserError
from regimes.experiment.parent_watchdog import end_with

if TYPE_CHECKING:
    import optuna

    from regimes.config.hpo import Hpo

DEATHS = 3  # of workers that a search survives
LOOK = 0.5  # seconds between two looks at the workers


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker of a crew is told.

    Attributes:
        folder: of the search; its plan is read from there.
        url: of the storage.
        device: to train on.
        phase: of the search.
        batch: trials that it asks for together.
        trials: in all.
        ends: time (``time.time``) from which nothing new is begun.
    """

    folder: Path
    url: str
    device: str
    phase: str
    batch: int
    trials: int
    ends: float


def run_workers(
    post: WorkerConfig, spec: Hpo, study: optuna.Study, workers: int, look: Callable[[], None] = lambda: None
) -> None:
    """Let processes work on a study until there are enough trials.

    Raises:
        RunFailed: workers die again and again.
        UserError: what a worker could not do.
    """
    from regimes.hpo.optuna_study import requeue_dead_trials

    context = multiprocessing.get_context("spawn")
    deaths, errors = 0, context.SimpleQueue()
    run_workers: list[Any] = []

    def start(number: int) -> Any:
        process = context.Process(target=_worker, args=(post, spec, number, os.getpid(), errors))
        process.start()
        return process

    try:
        run_workers = [start(number) for number in range(workers)]
        while any(process.exitcode != 0 for process in run_workers):
            time.sleep(LOOK)
            look()
            if not errors.empty():
                raise UserError(errors.get())
            for number, process in enumerate(run_workers):
                if process.exitcode not in (None, 0):
                    deaths += 1
                    if deaths > DEATHS:
                        raise RunFailed(
                            f"workers died {deaths} times, the last with exit code {process.exitcode}; out of memory? "
                            "The same command goes on; fewer --workers need less"
                        )
                    requeue_dead_trials(study)
                    run_workers[number] = start(workers * deaths + number)
    finally:
        for process in run_workers:
            if process.is_alive():
                process.terminate()
        for process in run_workers:
            process.join()


def _worker(post: WorkerConfig, spec: Hpo, number: int, command: int, errors: Any) -> None:
    """One process: the plan is read from the folder, the study from its storage."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its workers
    signal.signal(signal.SIGTERM, _leave)
    end_with(command)
    import optuna
    import torch

    from regimes.hpo.optimize_loop import Limits, study_of, trial_runner_of, work
    from regimes.hpo.optuna_study import open_storage
    from regimes.hpo.plan import context_of, load_plan
    from regimes.hpo.promotion import BASE, phase_of

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        context = context_of(spec, post.device, post.folder)
        plan = load_plan(spec, context, post.folder)
        assert plan is not None
        plan = phase_of(plan, post.phase)
        deadline = time.monotonic() + post.ends - time.time()
        study = study_of(plan, context, open_storage(post.url), number)
        climb = trial_runner_of(plan, context, post.folder, None, deadline)
        work(study, climb, post.batch, Limits(post.trials, deadline, post.phase != BASE))
    except UserError as error:
        errors.put(str(error))
        os._exit(2)


def _leave(*_: Any) -> None:
    raise SystemExit(143)  # so that trials under way are handed back
