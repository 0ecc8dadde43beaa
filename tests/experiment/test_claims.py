"""Claims: whoever is first has the work, the dead have none, and commands on one folder share theirs."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import TINY, done, write_toml
from hypothesis import given, settings
from hypothesis import strategies as st

from regimes.config.sweep_file import resolve_sweep
from regimes.experiment import claims as claims_module
from regimes.experiment import ready_queue
from regimes.experiment.claims import STALE_AFTER, Claims, owners
from regimes.experiment.ready_queue import ReadyQueue
from regimes.experiment.run import prepare
from regimes.experiment.schedule import Fleet, fleets
from regimes.experiment.stages.stage import Outcome
from regimes.experiment.store import Store

Sweep = dict[str, Any]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ready_queue, claims_module):
        monkeypatch.setattr(module, "LOOK_INTERVAL", 0.0)


def together(*work: Callable[[], None]) -> None:
    """Call functions in a thread each, at once."""
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_work_belongs_to_whoever_claims_it_first(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert ours.take("a")
        assert ours.take("a")  # still ours
        assert not theirs.take("a")
        assert theirs.is_taken("a")
        assert not ours.is_taken("a")
        assert theirs.take("b")
        ours.release("a")
        assert not theirs.is_taken("a")
        assert theirs.take("a")
    assert not (tmp_path / "claims").exists()


def test_of_many_that_claim_at_once_one_has_it(tmp_path: Path) -> None:
    names = [f"work-{number}" for number in range(40)]
    commands = [Claims(tmp_path) for _ in range(8)]
    had: list[list[str]] = [[] for _ in commands]

    def claim(command: Claims, mine: list[str]) -> None:
        mine += [name for name in names if command.take(name)]

    for command in commands:
        command.__enter__()
    together(*(functools.partial(claim, *each) for each in zip(commands, had, strict=True)))
    assert sorted(name for mine in had for name in mine) == sorted(names)
    for command in commands:
        command.__exit__(None, None, None)


def test_pieces_of_work_are_done_once_by_two_commands_in_turn(tmp_path: Path) -> None:
    did: list[int] = []

    def work() -> None:
        with Claims(tmp_path) as claims:
            for piece in claims.in_turn(range(8), str):
                if piece not in did:  # as a finished piece is seen on disk
                    time.sleep(0.02)
                    did.append(piece)

    together(*[work] * 2)
    assert sorted(did) == list(range(8))


def a_command(folder: Path, work: str) -> subprocess.Popen[bytes]:
    """A process that claims some work and goes on working."""
    code = "import sys, time; from regimes.experiment.claims import Claims\n"
    code += "with Claims(sys.argv[1]) as claims: claims.take(sys.argv[2]); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, folder, work], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_the_work_of_a_killed_command_is_free_at_once(tmp_path: Path) -> None:
    killed = a_command(tmp_path, "a")
    assert [owner.pid for owner in owners(tmp_path)] == [killed.pid]
    with Claims(tmp_path) as ours:
        assert [owner.pid for owner in ours.others()] == [killed.pid]
        assert not ours.take("a")
        os.kill(killed.pid, signal.SIGKILL)  # not waited for: a zombie is dead, too
        while not ours.take("a"):
            time.sleep(0.01)
        assert not ours.others()
        with Claims(tmp_path) as theirs:  # its stale files are removed
            assert not theirs.take("a")
    killed.wait()
    assert not list(tmp_path.rglob("*.owner"))


def test_the_work_of_a_machine_that_is_silent_is_free_after_three_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(claims_module, "_machine", lambda: "elsewhere")
        far = Claims(tmp_path)
        far.__enter__()
        assert far.take("a")
        far._end.set()  # its heart stops
        far._thread.join()
    with Claims(tmp_path) as ours:
        assert not ours.take("a")
        past = time.time() - STALE_AFTER + 30
        os.utime(far.file, (past, past))
        assert not ours.take("a")
        past -= 60
        os.utime(far.file, (past, past))
        assert ours.take("a")
        assert not far.is_taken("b")


def test_a_claim_is_the_last_one_taken_over_even_if_stale_ones_are_removed(tmp_path: Path) -> None:
    killed = a_command(tmp_path, "a")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    with Claims(tmp_path / "other") as elsewhere, Claims(tmp_path) as ours:
        (tmp_path / "claims" / "a.1").hardlink_to(_owner_of_the_dead(tmp_path, killed.pid))
        assert ours.take("a")
        assert (tmp_path / "claims" / "a.2").exists()
        (tmp_path / "claims" / "a.1").unlink()  # by a command that tidies up
        with Claims(tmp_path) as theirs:
            assert not theirs.take("a")
            assert not (tmp_path / "claims" / "a.1").exists()
        assert elsewhere.take("a")


def _owner_of_the_dead(folder: Path, pid: int) -> Path:
    """Write the owner's file of a process that has ended."""
    path = folder / "claims" / f"dead-{pid}.owner"
    content = (next((folder / "claims").glob("*.owner"))).read_text()
    path.write_text(content.replace(str(os.getpid()), str(pid)))
    return path


def test_a_folder_that_is_removed_while_a_command_works_is_no_error(tmp_path: Path) -> None:
    with Claims(tmp_path / "run") as ours:
        shutil.rmtree(tmp_path / "run")
        assert ours.take("a")
        ours.release("a")


# -- the queue ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> list[Fleet]:
    """The fleets of a small sweep."""
    prepared = prepare(resolve_sweep(TINY, "test"), tmp_path_factory.mktemp("none"), engine="eager")
    return fleets(prepared.progress.todo, prepared.lanes)


@pytest.fixture
def queues(work: list[Fleet], tmp_path: Path) -> Iterator[Callable[[], tuple[ReadyQueue, list[Outcome]]]]:
    """A function that returns the queue of another command on the same sweep, and the list of its reports."""
    opened: list[Claims] = []

    def queue() -> tuple[ReadyQueue, list[Outcome]]:
        opened.append(Claims(tmp_path).__enter__())
        reports: list[Outcome] = []
        return ReadyQueue(work, Store(tmp_path), opened[-1], reports.append), reports

    yield queue
    for claims in opened:
        claims.__exit__(None, None, None)


def write(store: Store, key: str) -> None:
    store.write(key, {"kind": "made", "status": "ok", "numerics": "", "at": {}, "values": {}})


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_every_stage_is_done_once_and_reported_to_every_command(seed: int, work: list[Fleet]) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as folder, Claims(folder) as one, Claims(folder) as two:
        reports: list[list[Outcome]] = [[], []]
        store = Store(folder)
        queues = [ReadyQueue(work, store, *each) for each in ((one, reports[0].append), (two, reports[1].append))]
        given_out: list[list[Any]] = [[], []]
        times_done: Counter[str] = Counter()
        while not all(queue.is_over and not mine for queue, mine in zip(queues, given_out, strict=True)):
            who = random.randrange(2)
            if given_out[who] and random.random() < 0.5:
                fleet = given_out[who].pop(random.randrange(len(given_out[who])))
                if random.random() < 0.1:  # its worker dies
                    queues[who].put_back(fleet)
                    continue
                for stage in fleet.stages:
                    if not store.is_intact(stage.key):
                        write(store, stage.key)
                        times_done[stage.key] += 1
                    queues[who].close(Outcome(stage.key))
            elif (fleet := queues[who].take()) is not None:
                assert all(store.is_intact(need) for need in fleet.needs)
                given_out[who].append(fleet)
        keys = {stage.key for fleet in work for stage in fleet.stages}
        assert times_done == dict.fromkeys(keys, 1)
        for seen in reports:
            assert sorted(outcome.key for outcome in seen) == sorted(keys)
        assert not list((Path(folder) / "claims").glob("*.[0-9]"))


def test_what_another_command_gives_up_is_handed_out(
    queues: Callable[[], tuple[ReadyQueue, list[Outcome]]],
) -> None:
    (ours, _), (theirs, _) = queues(), queues()
    first = theirs.take()
    assert first is not None
    others = []
    while (fleet := ours.take()) is not None:
        others.append(fleet)
    assert first not in others
    assert [fleet.stages for fleet in ours.elsewhere] == [first.stages]
    theirs.claims.__exit__(None, None, None)
    assert ours.take() == first
    theirs.claims = Claims(theirs.store.folder).__enter__()  # for the fixture


def test_a_stage_that_fails_elsewhere_fails_here_with_what_needs_it(
    queues: Callable[[], tuple[ReadyQueue, list[Outcome]]],
) -> None:
    (ours, seen), (theirs, _) = queues(), queues()
    first = theirs.take()
    assert first is not None
    assert ours.take() is None
    for stage in first.stages:
        theirs.store.fail(stage.key, "ValueError: broken", "", {})
        theirs.close(Outcome(stage.key, "ValueError: broken"))
    while not ours.is_over:
        assert ours.take() is None
    assert seen == [Outcome(stage.key, "ValueError: broken") for stage in first.stages]


# -- whole commands ----------------------------------------------------------------------------------------------------

STEPS = "REGIMES_TEST_STEPS"  # environment variable: file to which every training step of any process adds a byte
COUNTING = f"""
import os
import torch
from regimes.models.mlp import MLP

def mlp(input_shape, classes):
    model = MLP(input_shape, classes, [12, 12], batch_norm=True)

    def count(module, inputs):
        if module.training and torch.is_grad_enabled():
            with open(os.environ["{STEPS}"], "ab") as stream:
                stream.write(b".")

    model.register_forward_pre_hook(count)
    return model
"""


def test_four_commands_train_as_much_as_one(
    tiny: Sweep, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = tmp_path / "steps"
    monkeypatch.setenv(STEPS, str(steps))
    tiny |= {"dense_seeds": 3, "model": {"name": "counting:mlp"}}
    toml = write_toml(tmp_path / "tiny.toml", tiny)
    (tmp_path / "counting.py").write_text(COUNTING)

    def counted(commands: int, out: str) -> int:
        steps.write_bytes(b"")
        words = ("run", toml, "--out", out, "--workers", "1", "--engine", "eager")
        with ThreadPoolExecutor(commands) as pool:
            ran = list(pool.map(lambda _: cli(*words), range(commands)))
        assert [each.returncode for each in ran] == [0] * commands, ran
        return steps.stat().st_size

    alone, again = counted(1, "by-1"), counted(1, "by-1")  # a command tries the model before it works
    assert counted(4, "by-4") == alone + 3 * again
    assert done(Store(tmp_path / "by-4")) == done(Store(tmp_path / "by-1"))
    assert not (tmp_path / "by-4" / "claims").exists()
    rows = [json.loads(line) for line in (tmp_path / "by-4" / "log.jsonl").read_text().splitlines()]
    assert sum(row["stages"] for row in rows) == len(done(Store(tmp_path / "by-1")))
    with Claims(tmp_path / "by-4", workers=3):
        assert f", process {os.getpid()}, workers: 3" in cli("status", "by-4").stdout
    assert "working on it" not in cli("status", "by-4").stdout


def test_a_claim_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def lost(source: Path, path: Path) -> None:  # as a network file system repeats a request
        link(source, path)
        raise FileExistsError

    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        monkeypatch.setattr(os, "link", lost)
        assert ours.take("a")
        monkeypatch.undo()
        assert not theirs.take("a")


def test_commands_that_begin_and_end_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def come_and_go() -> None:
        try:
            for _ in range(60):
                with Claims(tmp_path) as claims:
                    claims.take("a")
        except Exception as error:
            errors.append(error)

    together(*[come_and_go] * 3)
    assert not errors


def test_a_failing_report_ends_work_in_this_process(tiny: Sweep, run_tiny: Callable[..., Any]) -> None:
    def watch(stage: Any, outcome: Outcome) -> None:
        raise ConnectionError("database is gone")

    with pytest.raises(ConnectionError, match="database is gone"):
        run_tiny(tiny, workers=0, engine="eager", watch=watch)
    assert not run_tiny(tiny, workers=0).progress.failed
