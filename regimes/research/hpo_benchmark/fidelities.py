"""Fidelities of the recorded table: full network, proxies, part of the data, shorter training."""

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
from regimes.hpo.build_fidelities import (
    ProxyBuilder,
    facts_of,
    fidelity_from_facts,
    full_fidelity,
    option_fidelity,
    proxy_fidelity,
)
from regimes.hpo.fidelities import Fidelity
from regimes.hpo.search_space import recipe_with

FULL = "full"
SHORT_SHARE = 0.25  # of the epochs
MIDDLE_VALUES = ("sam_rho", "label_smoothing")  # hyperparameters that change a training step
SEARCHED = 2  # seeds per setting that searches draw from


@dataclass(frozen=True)
class RecordedFidelity:
    """Specification of one fidelity of the table.

    Attributes:
        name: name in the table.
        proxy: a name in `PROXIES`; "": the full network.
        density: density of the proxy.
        images: share of the training images.
        epochs: share of the epochs; the learning rate schedule is shortened accordingly.
        shift: {recipe field: factor} applied to every setting.
        seeds: number of seeds that every setting is trained with.
        size: the model's option in which it is smaller, with its value, in place of a proxy.
    """

    name: str
    proxy: str = ""
    density: float = 1.0
    images: float = 1.0
    epochs: float = 1.0
    shift: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 1
    size: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether this is the full training that a search optimizes."""
        return not self.proxy and not self.size and self.unmodified

    @property
    def unmodified(self) -> bool:
        """Whether settings are unchanged and trained for all epochs on all images."""
        return not self.shift and self.images == 1 and self.epochs == 1

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe with which a setting is trained at this fidelity."""
        moved = {name: getattr(recipe, name) * factor for name, factor in self.shift.items()}
        return recipe.model_copy(update={**moved, "epochs": max(1, round(self.epochs * recipe.epochs)), "last": 1})


FIDELITIES = (
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
    RecordedFidelity("full, short", epochs=SHORT_SHARE),
    RecordedFidelity("narrowed 0.06, short", "narrowed", 0.06, epochs=SHORT_SHARE),
    RecordedFidelity("narrowed 0.12, short", "narrowed", 0.12, epochs=SHORT_SHARE),
    RecordedFidelity("narrowed 0.25, short", "narrowed", 0.25, epochs=SHORT_SHARE),
)


def build_fidelity(fidelity: RecordedFidelity, spec: Hpo, context: RunContext, batch: int) -> Fidelity:
    """Build the networks of a fidelity, choose their engine and time a step.

    Raises:
        UserError: this model cannot be reduced to the proxy's density.
    """
    part, kind = part_of(fidelity, context), fidelity.proxy or "narrowed"
    lanes = batch if fidelity.proxy or fidelity.size else 1
    make = ProxyBuilder(part, spec.recipe, kind, fidelity.epochs, lanes, spec.seed, extremes=typical_recipes(spec))
    if fidelity.proxy:
        return proxy_fidelity(make, fidelity.density)
    if fidelity.size:
        ((option, value),) = fidelity.size.items()
        return option_fidelity(make, option, value)
    return full_fidelity(dataclasses.replace(make, recipe=fidelity.recipe(spec.recipe)))


def typical_recipes(spec: Hpo) -> tuple[Recipe, ...]:
    """Return a recipe of each batch size of a search, with SAM rho and label smoothing amid their ranges."""
    dimension = spec.space.get("batch_size")
    sizes = [int(each) for each in dimension.choices or ()] if dimension is not None else []
    middle = {name: sum(spec.space[name].ends) / 2 for name in MIDDLE_VALUES if name in spec.space}
    return tuple(recipe_with(spec.recipe, {**middle, "batch_size": size}) for size in sizes or [spec.recipe.batch_size])


def part_of(fidelity: RecordedFidelity, context: RunContext) -> RunContext:
    """Return the context with the fidelity's share of the training images, a fixed random subset."""
    if fidelity.images == 1:
        return context
    part = copy.copy(context)
    part.data = subset_images(context.data, fidelity.images)
    return part


def subset_images(data: Dataset, share: float) -> Dataset:
    """Return the data with a fixed random share of its training images."""
    count = len(data.train.targets)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: round(share * count)].sort().values
    order = order.to(data.train.targets.device)
    return dataclasses.replace(data, train=Split(data.train.inputs[order], data.train.targets[order]))


def as_facts(fidelity: RecordedFidelity, built: Fidelity) -> dict[str, Any]:
    """Return a fidelity and its networks as plain data; the inverse of `from_facts`."""
    return {"course": dataclasses.asdict(fidelity), "rung": facts_of(built)}


def from_facts(facts: Mapping[str, Any], context: RunContext, recipe: Recipe) -> tuple[RecordedFidelity, Fidelity]:
    """Return the fidelity and its networks that plain data describe."""
    fidelity = RecordedFidelity(**facts["course"])
    return fidelity, fidelity_from_facts(facts["rung"], part_of(fidelity, context), recipe)
