"""Recordings of the benchmark: search file, sizes of the tables, and what is trained for each."""

from __future__ import annotations

from dataclasses import dataclass

from regimes.research.hpo_benchmark.fidelities import FIDELITIES, FULL, SEARCHED, RecordedFidelity

BEST_SHARE = 4  # the better 1 / BEST_SHARE of the settings is trained with more seeds


@dataclass(frozen=True)
class PrunedDesign:
    """Sizes of the table of pruned networks.

    Attributes:
        settings: number of settings, the first ones of the recording's.
        snapshots: shares of the dense training's epochs at which it is stopped and pruned.
        densities: fractions of the prunable weights that are kept.
        copies: retrained copies of each pruned network.
        dense_seeds: dense trainings of a setting: of every setting, and of the better quarter.
    """

    settings: int
    densities: tuple[float, ...]
    snapshots: tuple[float, ...] = (0.3, 1.0)
    copies: int = 2
    dense_seeds: tuple[int, int] = (1, 2)

    @property
    def better(self) -> int:
        """Number of settings that are trained with more dense seeds."""
        return max(1, self.settings // BEST_SHARE)

    @property
    def dense_trainings(self) -> int:
        """Number of dense trainings."""
        every, best = self.dense_seeds
        return self.settings * every + self.better * (best - every)

    @property
    def retrainings(self) -> int:
        """Number of retrainings of one dense training."""
        return len(self.snapshots) * len(self.densities) * self.copies


@dataclass(frozen=True)
class Recording:
    """A recording: the tables of one search space.

    Attributes:
        name: name in `RECORDINGS`; its default folder is ``reports/hpo-NAME``.
        file: search file.
        title: what is learnt, in words.
        settings: number of settings of the table of full networks, a power of two.
        fidelities: what every setting is trained on for that table.
        shifted, scaled: names of fidelities that are recorded with shifted settings as well, and with learning rates
            scaled in inverse proportion to the width.
        pruned: the table of pruned networks.
        proxies: names of the narrower networks that searches are compared with, the package's own search's first.
        has_map: whether the regime map of the search is made, too.
    """

    name: str
    file: str
    title: str
    settings: int
    fidelities: tuple[RecordedFidelity, ...]
    pruned: PrunedDesign
    proxies: tuple[str, ...]
    shifted: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()
    has_map: bool = False


WHOLE = RecordedFidelity(FULL, seeds=SEARCHED)
PARTS = (
    RecordedFidelity("quarter of the images", images=0.25),
    RecordedFidelity("half of the images", images=0.5),
)
DIGITS = Recording(
    "digits",
    "sweeps/digits-proof.toml",
    "handwritten digits",
    256,
    FIDELITIES,
    PrunedDesign(40, (0.03, 0.1, 0.4)),
    ("narrowed 0.06", "narrowed 0.25"),
    shifted=("narrowed 0.06", "narrowed 0.06, short"),
    scaled=("narrowed 0.06",),
    has_map=True,
)
CIFAR10 = Recording(
    "cifar10",
    "sweeps/cifar10-search.toml",
    "a part of CIFAR-10",
    128,
    (WHOLE, *(RecordedFidelity(f"narrowed {each}", "narrowed", each) for each in (0.06, 0.25)), *PARTS),
    PrunedDesign(48, (0.06, 0.2, 0.6)),
    ("narrowed 0.06", "narrowed 0.25"),
)
TEXT = Recording(
    "text",
    "sweeps/text-search.toml",
    "text",
    128,
    (WHOLE, *(RecordedFidelity(f"width {each}", size={"width": each}) for each in (8, 16)), *PARTS),
    PrunedDesign(48, (0.05, 0.2, 0.6)),
    ("width 8", "width 16"),
)
