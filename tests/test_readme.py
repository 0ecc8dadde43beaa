"""Every README tells the truth: links resolve, commands and options exist, examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import torch.nn.functional as F
import typer

import regimes
from regimes.cli import app
from regimes.models.build import build

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted(
    page
    for page in (README, *(ROOT / "regimes").rglob("README.md"), ROOT / "sweeps/README.md", ROOT / "reports/README.md")
    if page.exists()
)
BLOCK = re.compile(r"```(\w*)\n(.*?)```", flags=re.S)


def python_block(marker: str) -> str:
    """The one Python example of all pages that contains a text."""
    blocks = [code for page in PAGES for language, code in BLOCK.findall(page.read_text()) if language == "python"]
    (code,) = (code for code in blocks if marker in code)
    return code


def commands(text: str) -> Iterator[list[str]]:
    """The words of every ``regimes ...`` command that a page shows, in blocks or between backticks."""
    shown = [line for language, code in BLOCK.findall(text) if language == "sh" for line in code.splitlines()]
    shown += re.findall(r"`(regimes [^`]+)`", BLOCK.sub("", text))
    for line in shown:
        for part in re.split(r"&&|\|\|", line.partition("#")[0]):
            words = part.split()
            program = words[0].rpartition("/")[2] if len(words) > 1 else ""
            if program == "regimes" and re.match(r"[a-z]", words[1]):
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.M)
            assert anchor in [heading.lower().replace(" ", "-").replace(",", "") for heading in headings], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, *words in commands(page.read_text()):
        assert name in known, name
        parameters = known[name].params
        options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            assert not word.startswith("--") or word.partition("=")[0] in options, (name, word)


def test_the_front_page_is_short_and_names_every_command() -> None:
    text = README.read_text()
    assert len(text.encode()) <= 10_000
    assert {name for name, *_ in commands(text)} == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_folder_has_a_page() -> None:
    folders = [path.parent for path in (ROOT / "regimes").glob("*/__init__.py")]
    assert [folder.name for folder in folders if not (folder / "README.md").exists()] == []


def test_a_model_and_data_of_ones_own_as_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(python_block("def data()"))
    (tmp_path / "mine.toml").write_text(
        '[data]\nname = "mine:data"\n[model]\nname = "mine:net"\nwidth = 32\n'
        '[recipe]\naugment = "none"\nepochs = 2\n[temperature]\nepochs = [2]\n[load]\ndensity = [0.5]\n'
    )
    script = f"import regimes\nregimes.run({str(tmp_path / 'mine.toml')!r}, out='run', workers=1)\n"
    script += "regimes.draw_map(regimes.classify(regimes.open('run')), 'figures')\n"
    (tmp_path / "script.py").write_text(script)  # unguarded, as in a notebook
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figures/phase.png").exists()


@pytest.mark.parametrize(
    ("data", "model", "training"),
    [("pictures", "cnn", ""), ("text", "reader", ""), ("sentences", "judge", ""), ("pictures", "cnn", "train")],
)
def test_kinds_of_data_and_training_of_ones_own_as_shown(data: str, model: str, training: str, tmp_path: Path) -> None:
    """Each example trains, is pruned, retrained and measured; it learns to be better than guessing."""
    shown = [python_block(f"def {name}(") for name in {data, training or data}]
    (tmp_path / "own.py").write_text("\n".join(shown))
    train = f'train = "own:{training}"\n' if training else ""
    (tmp_path / "own.toml").write_text(
        f'[data]\nname = "own:{data}"\n[model]\nname = "own:{model}"\n[recipe]\naugment = "none"\nepochs = 6\n'
        f'batch_size = 16\noptimizer = "adamw"\nlearning_rate = 0.02\n{train}'
        "[temperature]\nepochs = [6]\n[load]\ndensity = [0.5]\n"
    )
    script = "import regimes\nregimes.run('own.toml', out='run', workers=0)\nrecord = regimes.open('run')\n"
    script += "print(float(record.dense_test_error.max()), float(record.test_error.max()), float(record.cka.min()))\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    dense, pruned, similarity = map(float, done.stdout.split()[-3:])
    guess = {"pictures": 0.4, "text": 0.7, "sentences": 0.35}[data]
    assert max(dense, pruned) < guess
    assert 0 < similarity <= 1


def test_the_sweep_file_as_shown_is_a_sweep(tmp_path: Path) -> None:
    (toml,) = (code for language, code in BLOCK.findall(README.read_text()) if language == "toml")
    (tmp_path / "sweep.toml").write_text(toml)
    assert regimes.read_sweep(tmp_path / "sweep.toml").load.density


def test_the_measures_alone_as_shown() -> None:
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(40) % 3
    names = {
        "regimes": regimes,
        **{name: build("mlp", {"widths": [5]}, (6,), 3, seed) for seed, name in enumerate(("model", "a", "b", "c"))},
        "loss_fn": F.cross_entropy,
        "inputs": inputs,
        "targets": targets,
        "loader": [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])],
    }
    exec(python_block("regimes.linear_connectivity("), names)
    trace = names["trace"]
    assert isinstance(trace, regimes.Estimate)
    assert trace.stderr <= 0.05 * abs(trace.value) or trace.samples == 2000


def test_an_optuna_script_of_ones_own_as_shown() -> None:
    """Every trial starts on the proxy, some are stopped there, and the best value is the full network's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(120, 6, generator=random), torch.randint(0, 3, (120,), generator=random)
    sizes = []

    def net() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(6, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24), torch.nn.Linear(24, 3)
        )

    def train_and_validate(model: torch.nn.Module, rate: float) -> float:
        sizes.append(sum(weight.numel() for weight in model.parameters()))
        optimizer = torch.optim.SGD(model.parameters(), rate)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[:80]), targets[:80]).backward()
            optimizer.step()
        return float(F.cross_entropy(model(inputs[80:]), targets[80:]).detach())

    names: dict[str, Any] = {"Net": net, "inputs": inputs[:4], "train_and_validate": train_and_validate}
    exec(python_block("ladder.climb(trial)"), names)
    states = [trial.state.name for trial in names["study"].trials]
    assert states.count("PRUNED") >= 4
    assert states.count("COMPLETE") >= 1
    assert sorted(set(sizes))[0] < 0.3 * max(sizes)
    assert sizes.count(min(sizes)) == 12
    assert sizes.count(max(sizes)) == states.count("COMPLETE")
