"""``regimes new``: a commented starter file that runs at once."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from regimes.cli.errors import report_user_errors
from regimes.errors import UserError
from regimes.registry import nearest

KINDS = {
    "images": "sweep: your image arrays, a small convolutional network",
    "tokens": "sweep: sequences with a padding mask, a transformer, AdamW with warm-up",
    "tabular": "sweep: rows of numbers, classes or one logit or a regression",
    "checkpoints": "sweep: networks that are trained already",
    "hpo": "search of learning rate and weight decay",
    "discover": "smaller networks in one training",
}
FOLDER = Path(__file__).parent / "starters"
COMMAND = re.compile(r"#   (?=\S)")  # in front of the commands at the top of a starter file


@report_user_errors
def new(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="; ".join(f"{kind} ({what})" for kind, what in KINDS.items()) + ".",
            autocompletion=lambda incomplete: [each for each in KINDS.items() if each[0].startswith(incomplete)],
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write (default: KIND.toml).")
    ] = None,
) -> None:
    """Write a commented starter file that runs at once, with data and model to replace by your own."""
    if kind not in KINDS:
        given = f"unknown kind '{kind}'{nearest(kind, KINDS)}" if kind else "the kind of starter file is missing"
        raise UserError(f"{given}; allowed: {', '.join(KINDS)}")
    file = Path(f"{kind}.toml") if out is None else out / f"{kind}.toml" if out.is_dir() else out
    if file.suffix != ".toml":
        raise UserError(f"--out {file}: allowed: a name that ends with .toml, or a folder")
    texts = starter(kind, file)
    for path in texts:
        if path.exists():
            raise UserError(f"{path}: exists already and is not overwritten; use --out FILE.toml, or move it away")
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {' and '.join(map(str, texts))}; next:")
    for line in texts[file].splitlines():
        if COMMAND.match(line):
            typer.echo(COMMAND.sub("  ", line))


def starter(kind: str, file: Path) -> dict[Path, str]:
    """Return {file: text} of a starter file and, where the kind has data of its own, the module beside it."""
    module = "my_" + re.sub(r"\W", "_", file.stem)
    beside = file.with_name(f"{module}.py")
    code = FOLDER / f"{kind}.py"
    typed = {
        f"my_{kind}.py": shlex.quote(str(beside)),
        f"my_{kind}": module,
        f"{kind}.toml": shlex.quote(str(file)),
        f"runs/{kind}": shlex.quote(f"runs/{file.stem}"),
        "'checkpoints/lr0.01/*.pt'": shlex.quote(str(file.parent / "checkpoints/lr0.01/*.pt")),
    }
    names = typed | {f"my_{kind}.py": beside.name, f"{kind}.toml": file.name}
    lines = (FOLDER / f"{kind}.toml").read_text(encoding="utf-8").splitlines()
    texts = {file: "".join(_renamed(f"{line}\n", typed if COMMAND.match(line) else names) for line in lines)}
    if code.exists():
        texts[beside] = _renamed(code.read_text(encoding="utf-8"), names)
    return texts


def _renamed(text: str, names: dict[str, str]) -> str:
    """A text with all names replaced at once."""
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)
    return re.sub(pattern, lambda found: names[found[0]], text)
