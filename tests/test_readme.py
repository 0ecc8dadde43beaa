"""The README tells the truth: its examples run, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.nn.functional as F

import regimes
from regimes.models.build import build

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.S)


def test_links_and_pictures_lead_somewhere() -> None:
    targets = [each for each in re.findall(r"\]\(([^)]+)\)", TEXT) if not each.startswith("http")]
    assert len(targets) > 4
    assert all((ROOT / each).exists() for each in targets)


def test_every_command_it_names_exists() -> None:
    from regimes.cli import app, asking, searching  # noqa: F401 - each adds commands
    from regimes.cli.options import app as program

    known = {each.name or str(getattr(each.callback, "__name__", "")) for each in program.registered_commands}
    assert (
        set(re.findall(rf"regimes ({'|'.join(sorted(known, key=len, reverse=True))})\b", TEXT))
        == known
        == set(re.findall(r"regimes ([a-z-]+)[ `]", "".join(re.findall(r"`regimes [a-z-]+[ `]", TEXT))))
    )


def test_a_model_and_data_of_ones_own_as_shown(tmp_path: Path) -> None:
    (source,) = (code for language, code in BLOCKS if language == "python" and "def data()" in code)
    (tmp_path / "mine.py").write_text(source)
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


def test_the_measures_alone_as_shown() -> None:
    (code,) = (code for language, code in BLOCKS if language == "python" and "trace = regimes.hessian_trace" in code)
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    names = {
        "regimes": regimes,
        "model": build("mlp", {"widths": [5]}, (6,), 3, 0),
        "a": build("mlp", {"widths": [5]}, (6,), 3, 1),
        "b": build("mlp", {"widths": [5]}, (6,), 3, 2),
        "loss_fn": F.cross_entropy,
        "inputs": inputs,
        "targets": torch.arange(40) % 3,
        "c": build("mlp", {"widths": [5]}, (6,), 3, 3),
    }
    names["loader"] = [(inputs[:20], names["targets"][:20]), (inputs[20:], names["targets"][20:])]
    exec(code, names)
    trace = names["trace"]
    assert isinstance(trace, regimes.Estimate)
    assert trace.stderr <= 0.05 * abs(trace.value) or trace.samples == 2000


def test_an_optuna_script_of_ones_own_as_shown() -> None:
    """Every trial climbs, some are stopped on the proxy, and the best value is the full network's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (code,) = (code for language, code in BLOCKS if language == "python" and "ladder.climb(trial)" in code)
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(120, 6, generator=random), torch.randint(0, 3, (120,), generator=random)
    sizes = []

    def net() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(6, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24), torch.nn.Linear(24, 3)
        )

    def train_and_validate(model: torch.nn.Module, rate: float) -> float:
        sizes.append(sum(each.numel() for each in model.parameters()))
        step = torch.optim.SGD(model.parameters(), rate)
        for _ in range(20):
            step.zero_grad()
            F.cross_entropy(model(inputs[:80]), targets[:80]).backward()
            step.step()
        return float(F.cross_entropy(model(inputs[80:]), targets[80:]).detach())

    names: dict[str, Any] = {"Net": net, "inputs": inputs[:4], "train_and_validate": train_and_validate}
    exec(code, names)
    study = names["study"]
    states = [each.state.name for each in study.trials]
    assert states.count("PRUNED") >= 4
    assert states.count("COMPLETE") >= 1
    assert sorted(set(sizes))[0] < 0.3 * max(sizes)
    assert sizes.count(min(sizes)) == 12
    assert sizes.count(max(sizes)) == states.count("COMPLETE")
