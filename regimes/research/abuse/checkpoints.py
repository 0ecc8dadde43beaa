"""Malformed checkpoints: a valid one of safetensors or ``torch.save``, mutated at random."""

from __future__ import annotations

import io
import json
import random
import struct
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from regimes.errors import UserError
from regimes.models.build import build, load_weights
from regimes.models.state_dict_file import read_checkpoint
from regimes.research.abuse.watchdog import OverTime, time_limit

LIMIT = 2.0  # seconds
NUMBERS: tuple[Any, ...] = (
    -1,
    0,
    1,
    3,
    7,
    255,
    2**31,
    2**32 - 1,
    2**53,
    2**63,
    2**64,
    1e400,
    0.5,
    None,
    True,
    "x",
    [],
    {},
)
State = dict[Any, Any]


def attack(seed: int, folder: Path) -> str:
    """Write one malformed checkpoint and read it; the same seed makes the same file.

    Returns:
        "read", "refused", "traceback: ..." of an error that is no `UserError`, or "over time".
    """
    generator = random.Random(seed)
    model = build("mlp", {"widths": [5], "batch_norm": True}, (6,), 3, seed)
    file = folder / generator.choice(("a.pt", "a.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.write_bytes(_malformed(dict(model.state_dict()), generator))
        try:
            with time_limit(LIMIT):
                load_weights(model, read_checkpoint(str(file), model))
        except UserError as error:
            return "refused" if len(error.lines) == 1 and "\n" not in str(error) else f"traceback: lines {error.lines}"
        except OverTime:
            return "over time"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"traceback: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    return "read"


def _malformed(state: State, generator: random.Random) -> bytes:
    """A file of mutated tensors, names or bytes; about a third of the files has several faults."""
    for change in generator.sample(CHANGES, generator.choice((0, 1, 1, 2))):
        state = change(state, generator)
    content = _saved(state, generator)
    for damage in generator.sample(DAMAGES, generator.choice((0, 1, 1, 2))):
        content = damage(content, generator)
    return content


def _saved(state: State, generator: random.Random) -> bytes:
    if generator.random() < 0.5 and all(isinstance(each, Tensor) for each in state.values()):
        try:
            return save({str(name): each.contiguous() for name, each in state.items()})
        except Exception:  # safetensors cannot store every tensor
            pass
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=generator.random() < 0.7)
    return buffer.getvalue()


def _other_tensor(state: State, generator: random.Random) -> State:
    makers: tuple[Callable[[Tensor], Any], ...] = (
        lambda each: each.to_sparse(),
        lambda each: each.to("meta"),
        lambda each: each.to(torch.complex64),
        lambda each: each.to(torch.float8_e5m2),
        lambda each: each.int(),
        lambda each: each.double() * 1e300,
        lambda each: each.bool(),
        lambda each: torch.quantize_per_tensor(each.float(), 0.1, 0, torch.qint8),
        lambda each: torch.zeros(()).expand(each.shape),
        lambda each: each.reshape(-1),
        lambda each: each.new_zeros(0),
        lambda each: each * float("nan"),
        lambda each: torch.zeros(()),
        lambda each: each.tolist(),
        lambda each: None,
    )
    name = generator.choice(list(state))
    return {**state, name: generator.choice(makers)(state[name])} if isinstance(state[name], Tensor) else state


def _other_name(state: State, generator: random.Random) -> State:
    name = generator.choice(list(state))
    fronts = ("module.", "_orig_mod.", "model.", "module.module.", ".", "", "\x00", "a\n", "\u202e", "x" * 10**5)
    key: Any = generator.choice((0, None, (1, 2), *(front + str(name) for front in fronts)))
    kept = {each: value for each, value in state.items() if each != name or generator.random() < 0.5}
    return {**kept, key: state[name]}


def _other_names(state: State, generator: random.Random) -> State:
    front = generator.choice(("module.", "model.", "_orig_mod.module.", "ema.", "a.b.c."))
    renamed = {f"{front}{name}": each for name, each in state.items()}
    return {**state, **renamed} if generator.random() < 0.2 else renamed


def _nested(state: State, generator: random.Random) -> State:
    for _ in range(generator.choice((1, 1, 2, 50))):
        state = {generator.choice(("state_dict", "model", "ema", "epoch", 3)): state}
    return {**state, "more": generator.choice((1, "text", [1], {}, {"a": 1}, torch.zeros(3), {"a": torch.zeros(3)}))}


def _incomplete(state: State, generator: random.Random) -> State:
    kept = generator.randrange(len(state) + 1)
    return dict(list(state.items())[:kept]) or {"nothing": 0}


def _flip(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    reach = generator.choice((len(changed), min(len(changed), 300)))
    for _ in range(generator.choice((1, 1, 8, 64))):
        changed[generator.randrange(reach)] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _cut(content: bytes, generator: random.Random) -> bytes:
    start = generator.randrange(len(content))
    return generator.choice((content[:start], content[start:], content + content[:start]))


def _overwrite(content: bytes, generator: random.Random) -> bytes:
    start = generator.randrange(len(content))
    length = generator.randrange(1, 64)
    filler = generator.choice((bytes(length), b"\xff" * length, generator.randbytes(length), b"[" * length))
    return content[:start] + filler + content[start + length :]


def _header(content: bytes, generator: random.Random) -> bytes:
    """A header of safetensors with another entry, or another length of the header; of other files, other bytes."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        entry = header[generator.choice(list(header))]
        where = generator.choice(list(entry))
    except (ValueError, LookupError, TypeError):
        return _overwrite(content, generator)
    other = generator.choice(NUMBERS)
    entry[where] = generator.choice((other, [other, other], "F99", [0, 2**62], [1] * 1000, entry))
    try:
        text = json.dumps(header).encode()
    except ValueError:  # the entry contains itself
        text = b'{"a":' * 5000
    stated = len(text) if generator.random() < 0.7 else generator.choice((0, 1, 2**31, 2**60, 2**64 - 1))
    return struct.pack("<Q", stated) + text + content[8 + length :]


CHANGES = (_other_tensor, _other_name, _other_names, _nested, _incomplete)
DAMAGES = (_flip, _cut, _overwrite, _header)
