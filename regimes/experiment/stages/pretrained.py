"""Stage 1 for networks that are trained already: a user's own checkpoints, taken as a temperature family."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regimes.config.keys import SCHEMA, digest
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.context import RunContext
from regimes.experiment.stages.stage import Coordinates, Outcome, Report, attempt, record_of, value
from regimes.experiment.stages.train import VARIABLES
from regimes.experiment.store import Store
from regimes.landscape.error import error_and_loss
from regimes.models.build import load_weights

WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep the weights


@dataclass(frozen=True)
class PretrainedStage:
    """A dense network whose weights stand in a file.

    Attributes:
        identity: data and model; see `RunContext.identity`.
        path: of the file; the key rests on its content.
        content: hash of the file.
        recipe: of which only the loss counts here.
        seed: the dense seed.
        at: {knob: value, "dense_seed": seed}.
        images: (train, val, test) counts, for the estimate of time.
    """

    identity: dict[str, Any]
    path: str
    content: str
    recipe: Recipe
    seed: int
    at: Coordinates
    images: tuple[int, int, int]

    kind = "given"
    needs = ()
    aside = False

    @cached_property
    def key(self) -> str:
        """Data, model, the file's content, and the place: one file may stand at two temperatures."""
        return digest(self.describe())

    @property
    def work(self) -> float:
        """It is judged once."""
        return float(self.images[1] + self.images[2])

    def describe(self) -> dict[str, Any]:
        """All that the key rests on."""
        return {
            **self.identity,
            "schema": SCHEMA,
            "stage": "given",
            "content": self.content,
            "loss": {name: each for name, each in self.recipe.science().items() if name.startswith("loss")},
            "at": dict(self.at),
        }


def content_hash(path: str) -> str:
    """Hash of a checkpoint's file.

    Raises:
        UserError: there is no such file.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:20]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_checkpoint(path: str, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint, held against a model: a state dict by ``torch.save`` or in safetensors.

    It may be wrapped (``{"state_dict": ...}``), and names may begin with ``module.``. Weights only: nothing in the file
    is executed.

    Raises:
        UserError: no state dict is in the file, or it does not fit the model; one line says what does not.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are something else make a reader raise anything
        reason = (str(error).splitlines() or [""])[0].partition(". ")[0]  # torch goes on with advice against caution
        raise UserError(f"{path}: holds no weights that can be read: {reason}") from error
    for name in WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping) or not all(isinstance(each, Tensor) for each in held.values()):
        raise UserError(f"{path}: no state dict in it (a mapping of names to tensors)")
    weights = {str(name).removeprefix("module."): each for name, each in held.items()}
    _check_fits(path, weights, model)
    return {name: weights[name] for name in model.state_dict()}


def _check_fits(path: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    more = [name for name in weights if name not in wanted]
    if missing or more:
        said = [f"lacks {', '.join(missing[:3])}"] if missing else []
        said += [f"has {', '.join(more[:3])}, which the model has not"] if more else []
        raise UserError(f"{path}: is of another model: it {' and '.join(said)}")
    for name, each in wanted.items():
        if weights[name].shape != each.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, the model's "
                f"{tuple(each.shape)}; do [model] and the number of classes fit?"
            )


def import_checkpoints(fleet: Sequence[PretrainedStage], context: RunContext, store: Store, report: Report) -> None:
    """Judge each network once and keep its weights as a trained network's are kept."""
    for stage in fleet:
        started = time.perf_counter()
        with attempt([stage], store, report) as done:
            model = context.new_model(seed=0)
            if content_hash(stage.path) != stage.content:
                raise UserError(f"{stage.path} has changed since the run began; run again")
            weights = read_checkpoint(stage.path, model)
            load_weights(model, weights)
            values = {}
            for name, variable in VARIABLES.items():
                split = getattr(context.data, name.removesuffix("_error"))
                error, _ = error_and_loss(model, split, stage.recipe.loss_fn)
                values[name] = value(error, context.unit(variable, stage.recipe.loss))
            store.write(stage.key, record_of(stage, context, started, values), weights)
            done(Outcome(stage.key))
