"""The contests that discovered networks are judged by, and their recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regimes.config.recipe import Recipe
from regimes.config.sweep import Named
from regimes.plots.text_table import where
from regimes.research.page import Say
from regimes.research.studies.discovery_baselines import Contest, compete


def named(name: str, **options: Any) -> Named:
    """A name in a registry, with options."""
    return Named.model_validate({"name": name, **options})


DIGITS = Contest(
    name="digits",
    data=named("digits"),
    model=named("preresnet", depth=14, width=8),
    recipe=Recipe(epochs=40, batch_size=64, augment="none"),
    nus=(0.1, 0.3),
    seeds=5,
    widths=(2, 3, 4, 5, 6, 7, 8),
)
CIFAR = Contest(
    name="cifar10",
    data=named("imagefolder", root="data/cifar10-jpeg", images=3000, test_images=2000),
    model=named("resnet", depth=20, width=16),
    recipe=Recipe(epochs=20, batch_size=64, schedule="cosine", weight_decay=5e-4),
    nus=(0.1, 0.3),
    seeds=3,
    widths=(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16),
)


def recorded(contest: Contest, out: Path, say: Say) -> dict[str, Any]:
    """{"where": machine and versions, "records": of all arms}: as recorded in ``out``, or measured and recorded there.

    One process at a time, so that arms are timed alike.
    """
    file = out / f"{contest.name}.json"
    if not file.exists():
        found = {"where": where(), "records": compete(contest, 1, say)}
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found) + "\n")
    content: dict[str, Any] = json.loads(file.read_text())
    return content
