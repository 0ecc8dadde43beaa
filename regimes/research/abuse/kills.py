"""Kills: commands that are killed at random instants and started again until they have finished.

After each kill everything that was finished before is still there, unchanged; at the end the records are those of a
command that was never killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.store import Store
from regimes.research.page import Say

COMMON = """
name = "abuse"
[data]
name = "synthetic"
shape = [8]
train = 200
test = 80
spread = 2.0
[model]
name = "mlp"
widths = [12, 12]
batch_norm = true
[recipe]
epochs = 4
batch_size = 32
augment = "none"
"""
SWEEP = f"""
dense_seeds = 2
retrain_seeds = 2
{COMMON}
[temperature]
epochs = [2, 4]
batch_size = [16, 32]
[load]
density = [0.2, 0.4, 0.6]
[measure]
metrics = ["error", "lmc", "cka"]
"""
DISCOVERY = f"""
seeds = 2
{COMMON}
[discover]
nu = [0.01, 0.02]
"""
SEARCH = f"""
trials = 12
batch = 4
final_seeds = 1
{COMMON}
[study]
sampler = "random"
[space]
learning_rate = {{ low = 0.01, high = 1.0, log = true }}
"""
PRUNED = f"""
objective = "pruned"
{SEARCH}
[load]
density = [0.2, 0.4, 0.6]
"""
Finished = dict[str, Any]  # {name: what a finished piece of work has found}


@dataclass(frozen=True)
class Killed:
    """A command that is killed again and again.

    Attributes:
        name: for the page.
        description: content of its TOML file.
        words: its words after the file.
        finished: function that reads what is finished in its folder.
        steady: whether it finds the same, bit for bit, however often it was killed.
    """

    name: str
    description: str
    words: tuple[str, ...]
    finished: Callable[[Path], Finished]
    steady: bool = True


@dataclass
class KillCount:
    """Kills of one command and what they led to.

    Attributes:
        kills: kills of a command that was at work.
        commands: commands that were killed until they finished.
        lost: finished pieces of work that were gone or changed after a kill.
        different: commands whose final records are not those of one that was never killed.
        tracebacks: commands that wrote a traceback.
        problems: the first lines of what went wrong.
    """

    kills: int = 0
    commands: int = 0
    lost: int = 0
    different: int = 0
    tracebacks: int = 0
    problems: list[str] = field(default_factory=list)


def stages(folder: Path) -> Finished:
    """Return what the finished stages of a run have found, without times."""
    found, store = {}, Store(folder)
    for path in folder.glob("records/*/*.json"):
        with contextlib.suppress(DamagedFile):
            record = store.read(path.stem)
            assert record is not None
            facts = [record["status"], record["values"], record.get("history"), record.get("weights")]
            found[path.stem] = json.dumps(facts)
    return found


def discoveries(folder: Path) -> Finished:
    """Return the finished trainings of a discovery, without times."""
    found = {}
    for path in folder.glob("*/discovery.json"):
        record = json.loads(path.read_text())["content"]
        kept = {name: value for name, value in record.items() if "seconds" not in name}
        kept["history"] = [{name: row[name] for name in row if "seconds" not in name} for row in record["history"]]
        found[path.parent.name] = json.dumps(kept)
    return found


def trials_in(url: str) -> Callable[[Path], Finished]:
    """Return a function that reads the finished trials of a search from its storage."""

    def finished(folder: Path) -> Finished:
        import optuna

        from regimes.hpo.optuna_study import JOURNAL, open_storage

        if not url and not (folder / JOURNAL).exists():
            return {}
        storage = open_storage(url.replace("FOLDER", str(folder)) or str(folder / JOURNAL))
        found = {}
        for study in optuna.get_all_study_summaries(storage, include_best_trial=False):
            for trial in optuna.load_study(study_name=study.study_name, storage=storage).get_trials(deepcopy=False):
                if trial.state == optuna.trial.TrialState.COMPLETE:
                    found[f"{study.study_name} {trial.number}"] = json.dumps([trial.params, trial.values])
        return found

    return finished


def commands(postgres: str) -> list[Killed]:
    """Return the commands to kill; searches on PostgreSQL only with the URL of a server."""
    one = ("--workers", "1")
    eager = (*one, "--engine", "eager")

    def search(name: str, *storage: str) -> Killed:
        return Killed(name, SEARCH, ("hpo", *one, *storage), trials_in("".join(storage[1:])), steady=False)

    found = [
        Killed("run", SWEEP, ("run", *eager), stages),
        Killed("run --adaptive", SWEEP, ("run", "--adaptive", *eager), stages),
        Killed("discover", DISCOVERY, ("discover",), discoveries),
        search("hpo, journal"),
        search("hpo, SQLite", "--storage", "sqlite:///FOLDER.db"),
        Killed("hpo, objective pruned", PRUNED, ("hpo", *one), stages, steady=False),
    ]
    if postgres:
        found.append(search("hpo, PostgreSQL", "--storage", postgres))
    return found


def kill_until_done(
    killed: Killed, folder: Path, seed: int, whole: Finished | None, seconds: float, count: KillCount
) -> None:
    """Start a command, kill it at a random instant, compare, and so on until it has finished.

    Args:
        killed: the command.
        folder: an empty folder.
        seed: seed of the instants.
        whole: what a command that was never killed has found; None: it is not compared.
        seconds: wall time of that command.
        count: counts what is seen.
    """
    generator, before = random.Random(seed), Finished()
    while True:
        process = start(killed, folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds * generator.uniform(0.3, 1.0))
        running = process.poll() is None
        if running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate()
        count.kills += running
        if "Traceback" in said:
            count.tracebacks += 1
            count.problems.append(f"{killed.name}: {said.strip().splitlines()[-1]}")
        after = killed.finished(folder / "out")
        lost = [name for name in before if after.get(name) != before[name]]
        if lost:
            count.lost += len(lost)
            count.problems.append(f"{killed.name}: {lost[0]} was lost or changed by a kill")
        before = after
        if not running:
            break
    count.commands += 1
    if process.returncode or (whole is not None and after != whole):
        count.different += 1
        count.problems.append(f"{killed.name}, seed {seed}: exit code {process.returncode}, {len(after)} finished")


def start(killed: Killed, folder: Path) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "abuse.toml"
    # The name is that of a search's study, also in a database that all searches share.
    file.write_text(killed.description.replace('"abuse"', f'"abuse-{zlib.crc32(str(folder).encode())}"'))
    name, *rest = (word.replace("FOLDER", str(folder / "out")) for word in killed.words)
    command = [sys.executable, "-m", "regimes", name, str(file), "--out", str(folder / "out"), *rest]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def never_killed(killed: Killed, folder: Path) -> tuple[Finished, float]:
    """Return what a command finds that is not killed, and its wall time in seconds."""
    started = time.perf_counter()
    process = start(killed, folder)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return killed.finished(folder / "out"), time.perf_counter() - started


def kill_commands(
    folder: Path, seed: int, until: Callable[[], bool], postgres: str, counts: dict[str, KillCount], say: Say
) -> None:
    """Kill all commands in turn until the time is over; a command begun is killed until it has finished."""
    references = {}
    while not until():
        for killed in commands(postgres):
            if killed.name not in references:
                references[killed.name] = never_killed(killed, folder / f"{killed.name} whole")
            whole, seconds = references[killed.name]
            work = folder / f"{killed.name} {seed}"
            count = counts.setdefault(killed.name, KillCount())
            kill_until_done(killed, work, seed, whole if killed.steady else None, seconds, count)
            say(f"{killed.name}: {count.kills} kills, {count.problems}")
            shutil.rmtree(work, ignore_errors=True)
            if until():
                return
        seed += 1
