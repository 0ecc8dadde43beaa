"""What a recording holds, each trained on every setting: full network, proxies, a part of the data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from regimes.data.dataset import Dataset, Split
from regimes.flow.lab import Lab
from regimes.hpo.ladder import Rung
from regimes.hpo.making import Making, facts_of, full_rung, proxy_rung, rung_from
from regimes.spec.hpo import Hpo
from regimes.spec.recipe import Recipe

FULL = "full"
SEARCHED = 2  # seeds of a setting that a search may see one of


@dataclass(frozen=True)
class Course:
    """One way to try a setting.

    Attributes:
        name: in tables.
        proxy: a name in `PROXIES`; "": the full network.
        density: of the proxy.
        images: share of the training images.
        shift: {field of the recipe: factor} by which the settings are multiplied.
        seeds: with which every setting is trained.
    """

    name: str
    proxy: str = ""
    density: float = 1.0
    images: float = 1.0
    shift: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 1

    def recipe(self, recipe: Recipe) -> Recipe:
        """A setting as it is tried here."""
        moved = {name: getattr(recipe, name) * factor for name, factor in self.shift.items()}
        return recipe.model_copy(update={**moved, "last": 1})


COURSES = (
    Course(FULL, seeds=SEARCHED),
    Course("narrowed 0.03", "narrowed", 0.03),
    Course("narrowed 0.06", "narrowed", 0.06, seeds=SEARCHED),
    Course("narrowed 0.12", "narrowed", 0.12),
    Course("narrowed 0.25", "narrowed", 0.25),
    Course("saliency 0.06", "channels-saliency", 0.06),
    Course("magnitude 0.06", "channels-magnitude", 0.06),
    Course("random 0.06", "channels-random", 0.06),
    Course("saliency 0.25", "channels-saliency", 0.25),
    Course("discovered 0.06", "discovered", 0.06),
    Course("quarter of the images", images=0.25),
    Course("half of the images", images=0.5),
)


def rung_of(course: Course, spec: Hpo, lab: Lab, batch: int) -> Rung:
    """The network of a course: made, its engine chosen, a step timed.

    Raises:
        UserError: the proxy's density is out of reach for this model.
    """
    make = Making(part_of(course, lab), spec.recipe, course.proxy or "narrowed", batch=batch, seed=spec.seed)
    if course.proxy:
        return proxy_rung(make, course.density)
    return full_rung(dataclasses.replace(make, batch=1))


def part_of(course: Course, lab: Lab) -> Lab:
    """The lab with as many of the training images as a course takes; a fixed draw."""
    if course.images == 1:
        return lab
    part = copy.copy(lab)
    part.data = fewer(lab.data, course.images)
    return part


def fewer(data: Dataset, share: float) -> Dataset:
    """The data with a share of its training images, the same ones each time."""
    count = len(data.train.targets)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: round(share * count)].sort().values
    order = order.to(data.train.targets.device)
    return dataclasses.replace(data, train=Split(data.train.inputs[order], data.train.targets[order]))


def as_facts(course: Course, rung: Rung) -> dict[str, Any]:
    """A course and its network as plain data; `from_facts` makes the same of it."""
    return {"course": dataclasses.asdict(course), "rung": facts_of(rung)}


def from_facts(facts: Mapping[str, Any], lab: Lab, recipe: Recipe) -> tuple[Course, Rung]:
    """A course and its network, of plain data."""
    course = Course(**facts["course"])
    return course, rung_from(facts["rung"], part_of(course, lab), recipe)
