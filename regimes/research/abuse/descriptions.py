"""Random malformed descriptions: files of sweeps, discoveries and searches, and ``--set`` changes of them."""

from __future__ import annotations

import copy
import datetime
import functools
import json
import math
import random
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regimes.config.discovery_file import read_discovery_file
from regimes.config.hpo_file import read_hpo
from regimes.config.recipe import Recipe
from regimes.config.sweep import LoadConfig
from regimes.config.sweep_file import read_sweep
from regimes.errors import MAX_LINES, SHORT_LINE, UserError
from regimes.research.abuse.watchdog import OverTime, time_limit

SECONDS = 2.0  # processor time in which a description is answered
SWEEPS = Path(__file__).parents[3] / "sweeps"  # of a clone
PASSWORD = "hunter2"
RARELY = 0.02  # share of values that are large

HOSTILE: tuple[Any, ...] = (
    *(True, False, 0, 1, -1, 2, 2.5, 1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf, 10**6, 10**9, 10**20),
    *(2**63 - 1, 2**63, -(2**63), int("9" * 400), "", " ", "0.1", "no", "true", "a" * 300, "../../x", "/etc/passwd"),
    *("/dev/zero", "~", "..", "a/b", "C:\\x", "\0", "x\0y", "\x1b[31mred\x1b[0m", "line\nline", "\u202eabc", "\u2028"),
    *("<script>alert(1)</script>", "**bold** | `cell`", "$\\frac{1$", "[red]x", "%s %n {0} {x!r}", "ä" * 90, "😀"),
    *("antigravity:x", "this:s", "idlelib:x", "turtle:done", "os:system", "builtins:eval", "math:pi"),
    *("regimes.__main__:main", "regimes:x", ":", "x:", ":x", "a:b:c", "..:x", "../../x:y", "a b:c", "torch:pi"),
    *(f"postgresql://me:{PASSWORD}@host/db", f"https://x.org/?password={PASSWORD}"),
    *([], [[]], [[0.1], [0.1]], [0.1, "a"], [True], [math.nan], [0.5, 0.5], ["a", "a"], [1, 1.0, True], [{}]),
    *({}, {"a": 1}, {"": 1}, {"a": {"b": {"c": []}}}, {"low": 0, "high": 1}, {"low": 1e308, "high": -1, "log": 3}),
    *(datetime.date(1979, 5, 27), datetime.time(7, 32), datetime.datetime(1979, 5, 27, 7), [datetime.time(7)]),
)  # fmt: skip
LARGE: tuple[Callable[[], str], ...] = (  # in the notation of TOML
    lambda: str([0.5] * 60_000),
    lambda: str([each / 800_001 for each in range(1, 800_001)]),
    lambda: str(list(range(1, 5_001))),
    lambda: str([f"{each:09}" for each in range(5_000)]),
    lambda: f"{{{', '.join(f'key{each} = 1' for each in range(20_000))}}}",
    lambda: "[" * 1_500 + "]" * 1_500,
    lambda: "{a = " * 1_500 + "1" + "}" * 1_500,
    lambda: "{a = " * 90 + "1" + "}" * 90,
    lambda: "9" * 5_000,
    lambda: "0x" + "f" * 5_000,
    lambda: f"'{'x' * 900_000}'",
    lambda: f"'{'://a:' * 150_000}'",
)
NAMES = (*Recipe.model_fields, *LoadConfig.model_fields, "name", "width", "trials", "seeds", "checkpoints", "sampler")
TABLES = ("data", "model", "recipe", "retrain", "dense", "temperature", "load", "measure", "space", "study", "discover")


@dataclass(frozen=True)
class Raw:
    """A value as it is written in TOML."""

    text: str


def attack(seed: int, folder: Path) -> str:
    """Read one random malformed description, made from a valid one.

    Args:
        seed: chooses the description; same seed, same description.
        folder: an existing folder, where the description is written.

    Returns:
        "accepted"; "refused", by a `UserError` in short printable lines without a password; "traceback: ..." for any
        other exception or message; or "over time" after `SECONDS` of processor time.
    """
    choose = random.Random(seed)
    file, raw = choose.choice(_valid())
    raw, changes = copy.deepcopy(raw), []
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        if choose.random() < 0.2:
            changes.append(f"{_key(choose, raw)}={_toml(_value(choose))}")
        else:
            _mutate(choose, raw)
    text = "\n".join(f"{_toml(name)} = {_toml(each)}" for name, each in raw.items())
    if choose.random() < 0.05:
        at = choose.randrange(len(text) + 1)
        text = text[:at] + choose.choice(("\0", "=", "[", "'''", "\x1b", "[x]\n[x]", "\ufeff")) + text[at + 1 :]
    path = folder / "description.toml"
    path.write_bytes(text.encode(errors="replace"))
    started = time.process_time()
    try:
        with time_limit(SECONDS):
            _reader(file)(path, changes)
        answer = "accepted"
    except UserError as error:
        problem = _problem(error.lines)
        answer = f"traceback: {problem}" if problem else "refused"
    except OverTime:
        answer = "over time"
    except (Exception, SystemExit) as error:
        answer = f"traceback: {type(error).__name__}: {error}"[:SHORT_LINE]
    return answer if time.process_time() - started < SECONDS else "over time"


@functools.cache
def _valid() -> tuple[tuple[str, dict[str, Any]], ...]:
    files = sorted(SWEEPS.glob("*.toml"))
    if not files:
        raise UserError(f"{SWEEPS}: no descriptions to start from; use a clone of the repository")
    return tuple((file.stem, tomllib.loads(file.read_text(encoding="utf-8"))) for file in files)


def _reader(name: str) -> Callable[..., Any]:
    if name.endswith("-discover"):
        return read_discovery_file
    return read_hpo if name.endswith(("-hpo", "-proof", "-search")) else read_sweep


def _places(table: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of all values, also of tables."""
    for name, each in table.items():
        yield (*before, name)
        if isinstance(each, dict):
            yield from _places(each, (*before, name))


def _value(choose: random.Random) -> Any:
    if choose.random() < RARELY:
        return Raw(choose.choice(LARGE)())
    value = choose.choice(HOSTILE)
    shape = choose.random()
    return value if shape < 0.7 else [value] if shape < 0.85 else [0.5, value] if shape < 0.95 else {"name": value}


def _key(choose: random.Random, raw: dict[str, Any]) -> str:
    """Return the key of a change: often one of the description, sometimes a new or a malformed one."""
    if choose.random() < 0.7:
        return ".".join(choose.choice(list(_places(raw))))
    deep, own = ".".join("a" * 1_500), f"load.{choose.choice(NAMES)}"
    return choose.choice(("", ".", "a..b", "name.x", "recipe", "\x1b[0m", deep, own))


def _mutate(choose: random.Random, raw: dict[str, Any]) -> None:
    """Replace, remove or add a key anywhere in a description."""
    *tables, last = choose.choice(list(_places(raw)) or [("name",)])
    place = functools.reduce(lambda table, name: table[name], tables, raw)
    way = choose.random()
    if way < 0.6:
        place[last] = _value(choose)
    elif way < 0.7:
        del place[last]
    elif way < 0.95:
        target = raw.setdefault(choose.choice(TABLES), {})
        (target if isinstance(target, dict) else raw)[choose.choice(NAMES)] = _value(choose)
    else:
        place[str(choose.choice(HOSTILE))[:200]] = _value(choose)


def _toml(value: Any) -> str:
    """Return a value in the notation of TOML."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(name)} = {_toml(each)}' for name, each in value.items())}}}"
    return str(value)


def _problem(lines: Iterable[str]) -> str:
    """Return what is wrong with the lines of a message, or an empty text."""
    shown = list(lines)
    if len(shown) > MAX_LINES + 1:
        return f"a message of {len(shown)} lines"
    for line in shown:
        if len(line) > SHORT_LINE:
            return f"a line of {len(line)} characters: {line[:80]!r}"
        if not line.isprintable() or PASSWORD in line:
            return f"a control character or a password in {line!r}"
    return ""
