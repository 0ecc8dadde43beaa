"""Malformed inputs and kills, counted: a few of each here, many with ``python -m regimes.research abuse``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regimes.errors import UserError
from regimes.research.abuse.command import INPUTS, abuse
from regimes.research.abuse.kills import KillCount, Killed, commands, kill_until_done, never_killed, stages


@pytest.mark.parametrize("kind", INPUTS)
def test_malformed_inputs_are_read_or_refused_and_the_same_seed_gives_the_same_answer(
    kind: str, tmp_path: Path
) -> None:
    answers = [INPUTS[kind](seed, tmp_path) for seed in range(1, 25)]
    assert set(answers) <= {"read", "accepted", "refused"}
    assert "refused" in answers
    assert [INPUTS[kind](seed, tmp_path) for seed in range(1, 4)] == answers[:3]


def test_counts_are_added_up_over_commands(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        abuse(tmp_path, 0.005, ["descriptions"], "", said.append).write(tmp_path, "command")
    facts = json.loads((tmp_path / "study.json").read_text())["facts"]
    tried = facts["tried"]["descriptions"]
    assert tried == sum(facts["answers"]["descriptions"].values())
    page = abuse(tmp_path, 0.005, ["descriptions"], "", said.append)
    assert page.facts["tried"]["descriptions"] > tried
    assert not page.facts["problems"]
    with pytest.raises(UserError, match=r"--only fire: unknown; allowed: descriptions, grids, checkpoints, kills"):
        abuse(tmp_path, 1, ["fire"], "", said.append)


def test_a_command_that_is_killed_until_it_has_finished_has_the_same_records(tmp_path: Path) -> None:
    run = commands("")[0]
    whole, seconds = never_killed(run, tmp_path / "whole")
    count = KillCount()
    kill_until_done(run, tmp_path / "killed", 3, whole, seconds, count)
    assert count == KillCount(kills=count.kills, commands=1)
    assert stages(tmp_path / "killed" / "out") == whole


def test_what_is_lost_or_different_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([{"a": "1"}, {"b": "2"}])

    class Process:
        pid, returncode = 2**30, 0
        polls = iter([None, 0])

        def wait(self, timeout: float) -> None: ...
        def poll(self) -> int | None:
            return next(self.polls)

        def communicate(self) -> tuple[str, str]:
            return "", "Traceback (most recent call last):\nValueError: oh"

    process = Process()
    monkeypatch.setattr("regimes.research.abuse.kills.start", lambda killed, folder: process)
    killed = Killed("run", "", ("run",), lambda folder: dict(next(states)))
    count = KillCount()
    kill_until_done(killed, tmp_path, 0, {"a": "1"}, 0.0, count)
    assert (count.kills, count.commands, count.lost, count.different, count.tracebacks) == (1, 1, 1, 1, 2)
    assert count.problems[0] == "run: ValueError: oh"
