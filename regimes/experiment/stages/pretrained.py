"""Stage 1 for pretrained networks: import of the user's checkpoints, one for each temperature."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regimes.config.keys import SCHEMA, digest
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.context import RunContext
from regimes.experiment.stages.stage import Coordinates, Outcome, Report, attempt, record_of, value
from regimes.experiment.stages.train import VARIABLES
from regimes.experiment.store import Store
from regimes.landscape.error import error_and_loss
from regimes.models.build import load_weights
from regimes.models.state_dict_file import check_file, read_checkpoint


@dataclass(frozen=True)
class PretrainedStage:
    """A dense network whose weights are read from a file.

    Attributes:
        identity: data and model; see `RunContext.identity`.
        path: the path of the file; not part of the key.
        content: the hash of the file's content.
        recipe: the dense recipe; only its loss is used.
        seed: the dense seed.
        coords: {knob: value, "dense_seed": seed}.
        images: (train, val, test) counts, for time estimates.
    """

    identity: dict[str, Any]
    path: str
    content: str
    recipe: Recipe
    seed: int
    coords: Coordinates
    images: tuple[int, int, int]

    kind = "given"
    needs = ()
    intermediate = False

    @cached_property
    def key(self) -> str:
        """Hash of data, model, content and coordinates: one file may be used at two temperatures."""
        return digest(self.describe())

    @property
    def cost(self) -> float:
        """One evaluation."""
        return float(self.images[1] + self.images[2])

    def describe(self) -> dict[str, Any]:
        """Return the description that the key is a hash of."""
        return {
            **self.identity,
            "schema": SCHEMA,
            "stage": "given",
            "content": self.content,
            "loss": {
                name: field for name, field in self.recipe.key_fields().items() if name.startswith(("loss", "error"))
            },
            "at": dict(self.coords),
        }


def content_hash(path: str) -> str:
    """Return the hash of a checkpoint file.

    Raises:
        UserError: the file cannot be read.
    """
    check_file(path)
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:20]


def import_checkpoints(fleet: Sequence[PretrainedStage], context: RunContext, store: Store, report: Report) -> None:
    """Evaluate each network once, and store its weights like those of a trained network; without a finite loss it has
    diverged."""
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            model = context.new_model(seed=0)
            if content_hash(stage.path) != stage.content:
                raise UserError(f"{stage.path} has changed since the run started; run again")
            weights = read_checkpoint(stage.path, model)
            load_weights(model, weights)
            values, losses = {}, []
            for name, variable in VARIABLES.items():
                split = getattr(context.data, name.removesuffix("_error"))
                error, loss = error_and_loss(model, split, stage.recipe.loss_fn, stage.recipe.error_function)
                values[name] = value(error, context.with_units(variable, stage.recipe))
                losses.append(loss.value)
            record = record_of(stage, context, started, values)
            if all(map(math.isfinite, losses)):
                store.write(stage.key, record, {name: each.clone() for name, each in weights.items()})  # may be tied
            else:
                store.write(stage.key, {**record, "status": "diverged"})
            done(Outcome(stage.key))
