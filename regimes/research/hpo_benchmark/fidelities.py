"""What a recording holds, each trained on every setting: full network, proxies, a part of the data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from regimes.config.hpo import Hpo
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset, Split
from regimes.experiment.context import RunContext
from regimes.hpo.build_fidelities import ProxyBuilder, facts_of, fidelity_from_facts, full_fidelity, proxy_fidelity
from regimes.hpo.fidelities import Fidelity

FULL = "full"
SHORT = 0.25  # share of the epochs
SEARCHED = 2  # seeds of a setting that a search may see one of


@dataclass(frozen=True)
class RecordedFidelity:
    """One way to try a setting.

    Attributes:
        name: in tables.
        proxy: a name in `PROXIES`; "": the full network.
        density: of the proxy.
        images: share of the training images.
        epochs: share of the epochs, the schedule shortened to it.
        shift: {field of the recipe: factor} by which the settings are multiplied.
        seeds: with which every setting is trained.
    """

    name: str
    proxy: str = ""
    density: float = 1.0
    images: float = 1.0
    epochs: float = 1.0
    shift: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is the training that is searched for."""
        return not self.proxy and self.plain

    @property
    def plain(self) -> bool:
        """Whether settings are tried as they are, in all epochs, on all images."""
        return not self.shift and self.images == 1 and self.epochs == 1

    def recipe(self, recipe: Recipe) -> Recipe:
        """A setting as it is tried here."""
        moved = {name: getattr(recipe, name) * factor for name, factor in self.shift.items()}
        return recipe.model_copy(update={**moved, "epochs": max(1, round(self.epochs * recipe.epochs)), "last": 1})


COURSES = (
    RecordedFidelity(FULL, seeds=SEARCHED),
    RecordedFidelity("narrowed 0.03", "narrowed", 0.03),
    RecordedFidelity("narrowed 0.06", "narrowed", 0.06, seeds=SEARCHED),
    RecordedFidelity("narrowed 0.12", "narrowed", 0.12),
    RecordedFidelity("narrowed 0.25", "narrowed", 0.25),
    RecordedFidelity("saliency 0.06", "channels-saliency", 0.06),
    RecordedFidelity("magnitude 0.06", "channels-magnitude", 0.06),
    RecordedFidelity("random 0.06", "channels-random", 0.06),
    RecordedFidelity("discovered 0.06", "discovered", 0.06),
    RecordedFidelity("quarter of the images", images=0.25),
    RecordedFidelity("half of the images", images=0.5),
    RecordedFidelity("full, short", epochs=SHORT),
    RecordedFidelity("narrowed 0.06, short", "narrowed", 0.06, epochs=SHORT),
    RecordedFidelity("narrowed 0.12, short", "narrowed", 0.12, epochs=SHORT),
    RecordedFidelity("narrowed 0.25, short", "narrowed", 0.25, epochs=SHORT),
)


def rung_of(course: RecordedFidelity, spec: Hpo, context: RunContext, batch: int) -> Fidelity:
    """The network of a course: made, its engine chosen, a step timed.

    Raises:
        UserError: the proxy's density is out of reach for this model.
    """
    part, kind = part_of(course, context), course.proxy or "narrowed"
    make = ProxyBuilder(part, spec.recipe, kind, course.epochs, batch if course.proxy else 1, spec.seed)
    if course.proxy:
        return proxy_fidelity(make, course.density)
    return full_fidelity(dataclasses.replace(make, recipe=course.recipe(spec.recipe)))


def part_of(course: RecordedFidelity, context: RunContext) -> RunContext:
    """The context with as many of the training images as a course takes; a fixed draw."""
    if course.images == 1:
        return context
    part = copy.copy(context)
    part.data = fewer(context.data, course.images)
    return part


def fewer(data: Dataset, share: float) -> Dataset:
    """The data with a share of its training images, the same ones each time."""
    count = len(data.train.targets)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: round(share * count)].sort().values
    order = order.to(data.train.targets.device)
    return dataclasses.replace(data, train=Split(data.train.inputs[order], data.train.targets[order]))


def as_facts(course: RecordedFidelity, rung: Fidelity) -> dict[str, Any]:
    """A course and its network as plain data; `from_facts` makes the same of it."""
    return {"course": dataclasses.asdict(course), "rung": facts_of(rung)}


def from_facts(facts: Mapping[str, Any], context: RunContext, recipe: Recipe) -> tuple[RecordedFidelity, Fidelity]:
    """A course and its network, of plain data."""
    course = RecordedFidelity(**facts["course"])
    return course, fidelity_from_facts(facts["rung"], part_of(course, context), recipe)
