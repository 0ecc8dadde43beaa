"""``python -m regimes.research abuse``: malformed inputs and kills until the time is over; counts are added up."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from regimes.errors import UserError
from regimes.plots.text_table import TextTable
from regimes.research.abuse import checkpoints, descriptions, grids
from regimes.research.abuse.kills import KillCount, kill_commands
from regimes.research.page import Page, Say

INPUTS: dict[str, Callable[[int, Path], str]] = {
    "descriptions": descriptions.attack,
    "grids": grids.attack,
    "checkpoints": checkpoints.attack,
}
KILLS = "kills"
PARTS = (*INPUTS, KILLS)
COUNTED = ("kills", "commands", "lost", "different", "tracebacks")
MOST_PROBLEMS = 20
INTRODUCTION = (
    "Counts are added up over runs of the command; the n-th input of a kind has seed n, so that a later command tries "
    "others. Inputs are made from valid ones by random edits and given, in one process with a watchdog, to the "
    "functions behind the commands. Commands are killed (SIGKILL) at random instants, their workers "
    "end with them, and started again until they have finished."
)
ANSWERS = (
    "refused: by an error of one line for the user; traceback: any other exception, or a message that is too long or "
    "has control characters; over time: descriptions and checkpoints 2 s, grids 10 s, with figures 60 s"
)
KILLED = (
    "kills: of a command that was at work; lost or changed: finished pieces of work that were gone or different after "
    "a kill; other records: finished commands whose records are not, bit for bit, those of one that was never killed "
    "(run, adaptive, discover), or that did not end well"
)
SAY_INTERVAL = 30.0  # seconds


@dataclass
class Counts:
    """Counts, added up over commands.

    Attributes:
        tried: {kind of input: number tried; the next one has this seed}.
        answers: {kind of input: {answer: number}}.
        kills: {command: kills and what they led to}.
        problems: the first inputs that went wrong.
    """

    tried: dict[str, int] = field(default_factory=lambda: dict.fromkeys(INPUTS, 0))
    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    kills: dict[str, KillCount] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> Counts:
        """Read the counts of earlier commands; none if there is no file."""
        if not path.is_file():
            return cls()
        facts = json.loads(path.read_text())["facts"]
        kills = {name: KillCount(**count) for name, count in facts.pop("kills").items()}
        return cls(**facts, kills=kills)


def abuse(out: Path, minutes: float, only: list[str], postgres: str, say: Say) -> Page:
    """Try malformed inputs and kills, the same share of the time for each part; return the page of all counts.

    Raises:
        UserError: an unknown part.
    """
    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise UserError(f"--only {unknown[0]}: unknown; allowed: {', '.join(PARTS)}")
    counts, parts = Counts.of(out / "study.json"), only or list(PARTS)
    for name in parts:
        ends = time.monotonic() + 60 * minutes / len(parts)
        with tempfile.TemporaryDirectory(prefix="abuse-", ignore_cleanup_errors=True) as folder:
            if name == KILLS:
                _kill(counts, Path(folder), ends, postgres, say)
            else:
                _try(name, counts, Path(folder), ends, say)
    return _page(counts)


def _try(name: str, counts: Counts, folder: Path, ends: float, say: Say) -> None:
    answers, said = Counter(counts.answers.get(name, {})), time.monotonic()
    while time.monotonic() < ends:
        seed = counts.tried[name]
        answer = INPUTS[name](seed, folder)
        counts.tried[name] += 1
        kind = answer.partition(":")[0]
        answers[kind] += 1
        if kind in ("traceback", "over time"):
            shown = answer.replace(f"{folder}/", "")
            counts.problems = [*counts.problems, f"{name}, seed {seed}: {shown}"][:MOST_PROBLEMS]
        if time.monotonic() - said > SAY_INTERVAL:
            said = time.monotonic()
            say(f"{name}: {counts.tried[name]} tried, {dict(answers)}")
    counts.answers[name] = dict(answers)


def _kill(counts: Counts, folder: Path, ends: float, postgres: str, say: Say) -> None:
    seed = sum(count.commands for count in counts.kills.values())
    kill_commands(folder, seed, lambda: time.monotonic() > ends, postgres, counts.kills, say)


def _page(counts: Counts) -> Page:
    names = sorted({answer for answers in counts.answers.values() for answer in answers} | {"traceback", "over time"})
    rows = [["inputs", "tried", *names]]
    for kind, tried in counts.tried.items():
        answers: Mapping[str, int] = counts.answers.get(kind, {})
        rows.append([kind, f"{tried:,}", *(f"{answers.get(name, 0):,}" for name in names)])
    killed = [["command", "kills", "until finished", "lost or changed", "other records", "tracebacks"]]
    for name, count in counts.kills.items():
        numbers = (count.kills, count.commands, count.lost, count.different, count.tracebacks)
        killed.append([name, *(f"{number:,}" for number in numbers)])
    totals = [sum(getattr(count, name) for count in counts.kills.values()) for name in COUNTED]
    killed.append(["all", *(f"{number:,}" for number in totals)])
    problems = [*counts.problems, *(line for count in counts.kills.values() for line in count.problems)]
    tables = [
        TextTable("Malformed inputs", rows, [ANSWERS], None),
        TextTable("Kills", killed, [KILLED, *(f"problem: {line}" for line in problems[:MOST_PROBLEMS])], None),
    ]
    return Page("abuse", "Malformed inputs and kills", [INTRODUCTION], tables, facts=asdict(counts))
