"""The table of what works with which network says what the tests of the parts hold."""

from __future__ import annotations

import re
from pathlib import Path

import network_kinds as kinds

import regimes


def test_table_of_what_works() -> None:
    page = (Path(regimes.__file__).parent / "README.md").read_text()
    lines = page.partition("## What works with which network")[2].partition("## ")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    refused = {
        "error, LMC, curve, CKA": set(),
        "Hessian": set(kinds.NO_HESSIAN),
        "Fisher": set(kinds.NO_FISHER),
        "magnitude, random": set(),
        "snip, synflow": set(kinds.NO_GRADIENT_PRUNERS),
        "stacked fleet": kinds.NOT_STACKED,
        "narrowed proxies": kinds.NOT_NARROWED,
        "channels": kinds.NOT_SHRUNK,
        "discovery": kinds.NOT_DISCOVERED,
    }
    assert head[1:] == list(refused)
    named = [re.search(r"\(`(.+)`\)", row[0]).group(1) for row in rows]  # type: ignore[union-attr]
    assert named == list(kinds.KINDS)
    for name, (_, *cells) in zip(named, rows, strict=True):
        assert cells == ["-" if name in kinds_ else "yes" for kinds_ in refused.values()], name
