"""Workers of a command that is killed end too, whether they work or wait."""

from __future__ import annotations

import subprocess
import sys
import time

COMMAND = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from regimes.experiment.parent_watchdog import exit_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context, initializer=exit_with_parent, initargs=(os.getpid(),)) as pool:
        busy = pool.submit(time.sleep, 600)
        print(*[pool.submit(os.getpid).result(), busy.running()], flush=True)
        busy.result()
"""


def test_workers_of_a_killed_command_end() -> None:
    command = subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert command.stdout.readline().strip().endswith("True")
    assert len(_group(command.pid)) >= 2
    children = _group(command.pid)
    command.kill()
    command.wait()
    limit = time.monotonic() + 20
    while left := [each for each in children if _alive(each)]:
        assert time.monotonic() < limit, f"{left} still there"
        time.sleep(0.1)


def _group(parent: int) -> list[str]:
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False)
    return found.stdout.split()


def _alive(pid: str) -> bool:
    """An orphan that has ended may wait for somebody to bury it."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) and not found.stdout.startswith("Z")
