"""``python -m regimes.research``: run a study of the method or a benchmark, and write its report."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from regimes.cli.errors import report_user_errors
from regimes.cli.options import Device, Json
from regimes.errors import UserError
from regimes.experiment.warning_lines import print_warnings
from regimes.registry import lookup
from regimes.research.hpo_benchmark import HPO_STUDIES
from regimes.research.hpo_benchmark.commands import app as hpo_benchmark
from regimes.research.speed import BENCHES
from regimes.research.speed.harness import BenchOptions
from regimes.research.studies import STUDIES

Images = Annotated[str, typer.Option(help="Folder of train/CLASS/*.jpg, test/CLASS/*.jpg (default: digits).")]
Count = Annotated[int, typer.Option(min=0, help="Images for PreResNet-20 (0: the benchmark's own number).")]
PROGRAM = "python -m regimes.research"
app = typer.Typer(name=PROGRAM, help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(hpo_benchmark, name="hpo_benchmark")


@app.command()
@report_user_errors
def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join([*STUDIES, *HPO_STUDIES])}.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for README.md, study.json and figures.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs that the study starts or resumes.")] = Path("runs"),
) -> None:
    """Run a study of the method and write its report."""
    started = time.perf_counter()
    page = lookup({**STUDIES, **HPO_STUDIES}, name, "study")(out, runs, _progress)
    typer.echo(page.text())
    try:
        page.write(out, _command(), (time.perf_counter() - started) / 60)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    typer.echo(f"wrote {out / 'README.md'}", err=True)


@app.command()
@report_user_errors
def bench(
    name: Annotated[str, typer.Argument(metavar="|".join(BENCHES), help="Benchmark to run.")],
    device: Device = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Number of interleaved runs of each contender.")] = 3,
    images: Images = "",
    count: Count = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for NAME.md, NAME.json and figures.")] = None,
    as_json: Json = False,
    recording: Annotated[Path | None, typer.Option(help="hpo only: recorded table to replay.")] = None,
    live: Annotated[bool, typer.Option("--live", help="hpo only: also run some searches with real training.")] = False,
) -> None:
    """Compare this package with other implementations on this machine."""
    from regimes.experiment.devices import device_of

    device = device_of(device)
    _check_images(images)
    more: dict[str, Any] = {"recording": recording, "live": live}
    if name != "hpo" and any(more.values()):
        raise UserError("--recording and --live are options of `bench hpo` only")
    options = BenchOptions(device, rounds, images, count)
    result = lookup(BENCHES, name, "benchmark")(options, _progress, **(more if name == "hpo" else {}))
    typer.echo(result.json() if as_json else result.text())
    if out is not None:
        files = result.write(out, _command())
        typer.echo(f"wrote {', '.join(str(file) for file in files)}", err=True)
    raise typer.Exit(1 if result.failed else 0)


@app.command()
@report_user_errors
def gpu(
    out: Annotated[Path, typer.Option("--out", help="Folder of results; parts that are done there are kept.")],
    device: Device = "cuda",
    minutes: Annotated[float, typer.Option(min=0.1, help="Time limit.")] = 8.0,
    only: Annotated[list[str] | None, typer.Option(help="A part to do, repeatable (default: all).")] = None,
    images: Images = "",
    count: Count = 0,
) -> None:
    """Measure everything that needs a GPU, part by part; repeat the command until no part is left."""
    from regimes.experiment.devices import device_of
    from regimes.research.gpu import measure_gpu

    device = device_of(device)
    _check_images(images)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part in work is stopped, too
    left = measure_gpu(out, device, minutes, only or [], count, images, _progress)
    raise typer.Exit(1 if left else 0)


@app.command()
@report_user_errors
def abuse(
    out: Annotated[Path, typer.Option("--out", help="Folder of the report; its counts are added to.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="Time limit, the same share for every part.")] = 30.0,
    only: Annotated[list[str] | None, typer.Option(help="A part to do, repeatable (default: all).")] = None,
    postgres: Annotated[str, typer.Option(help="URL of an empty PostgreSQL database, for kills of searches.")] = "",
) -> None:
    """Try malformed descriptions, grids and checkpoints, and kill commands at random instants; count what is seen."""
    from regimes.research.abuse.command import abuse as try_all

    page = try_all(out, minutes, only or [], postgres, _progress)
    typer.echo(page.text())
    page.write(out, _command())


def _check_images(images: str) -> None:
    if images and not (Path(images) / "train").is_dir():
        raise UserError(f"--images {images}: no folder train/; expected train/CLASS/*.jpg and test/CLASS/*.jpg")


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


def _command() -> str:
    return " ".join([PROGRAM, *sys.argv[1:]])


if __name__ == "__main__":
    print_warnings()
    app()
