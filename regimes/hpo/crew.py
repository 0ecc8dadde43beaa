"""Workers of one search: processes that share a study; one that dies is noticed, and what it held is done again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regimes.errors import RunFailed, UserError

if TYPE_CHECKING:
    import optuna

    from regimes.hpo.plan import Plan
    from regimes.spec.hpo import Hpo

DEATHS = 3  # of workers that a search survives
LOOK = 0.5  # seconds between two looks at the workers


def crew(
    plan: Plan,
    study: optuna.Study,
    folder: Path,
    url: str,
    device: str,
    workers: int,
    limits: tuple[int, float],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Let processes work on a study until there are enough trials.

    Raises:
        RunFailed: workers die again and again.
        UserError: what a worker could not do.
    """
    context = multiprocessing.get_context("spawn")
    deaths, errors = 0, context.SimpleQueue()
    name = study.study_name
    crew: list[Any] = []

    def start(number: int) -> Any:
        given = (plan.spec, name, folder, url, device, number, max(1, plan.spec.batch // workers), limits, os.getpid())
        process = context.Process(target=_worker, args=(*given, errors), daemon=False)
        process.start()
        return process

    try:
        crew = [start(number) for number in range(workers)]
        while any(process.is_alive() for process in crew):
            time.sleep(LOOK)
            look()
            for number, process in enumerate(crew):
                if process.exitcode not in (None, 0, 2):
                    deaths += 1
                    if deaths > DEATHS:
                        raise RunFailed(
                            f"workers were killed {deaths} times; out of memory? The same command goes on; "
                            "fewer --workers need less"
                        )
                    from regimes.hpo.study import adopt

                    adopt(study)
                    crew[number] = start(workers * deaths + number)
    finally:
        for process in crew:
            if process.is_alive():
                process.terminate()
        for process in crew:
            process.join()
    if not errors.empty():
        raise UserError(errors.get())


def _worker(
    spec: Hpo,
    name: str,
    folder: Path,
    url: str,
    device: str,
    number: int,
    batch: int,
    limits: tuple[int, float],
    command: int,
    errors: Any,
) -> None:
    """One process: the plan is read from the folder, the study from its storage."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its workers
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with, args=(command,), daemon=True).start()
    import optuna
    import torch

    from regimes.hpo.drive import Limits, climb_of, study_of, work
    from regimes.hpo.phase import phase_of
    from regimes.hpo.plan import kept, lab_of
    from regimes.hpo.study import open_storage

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        lab = lab_of(spec, device, folder)
        plan = kept(spec, lab, folder)
        assert plan is not None
        plan = phase_of(plan, name)
        trials, until = limits
        deadline = time.monotonic() + until - time.time()
        study = study_of(plan, lab, open_storage(url), number)
        work(study, climb_of(plan, lab, folder, None, deadline), batch, Limits(trials, deadline))
    except UserError as error:
        errors.put(str(error))
        os._exit(2)


def _leave(*_: Any) -> None:
    raise SystemExit(143)  # so that trials under way are handed back


def _end_with(command: int) -> None:
    """A worker whose command was killed has nobody left to work for."""
    while os.getppid() == command:
        time.sleep(1.0)
    os._exit(1)
