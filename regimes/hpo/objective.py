"""Objective function for an Optuna study of your own, with density as a fidelity."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial
from torch import nn

from regimes.config.hpo import Hpo
from regimes.config.hpo_file import resolve_hpo
from regimes.config.recipe import Recipe
from regimes.config.sweep import Named
from regimes.data.dataset import Dataset
from regimes.errors import UserError
from regimes.experiment.context import ContextSpec, RunContext
from regimes.hpo.custom_loop import own_function
from regimes.hpo.map_guidance import MapGuidance, open_guidance
from regimes.hpo.optimize_loop import Limits, run_trials, trial_runner_of
from regimes.hpo.plan import Plan, check_search, plan
from regimes.hpo.trial_runner import TrialRunner
from regimes.models.build import seeded
from regimes.regime_map.regime_map import RegimeMap
from regimes.registry import lookup

OBJECT_NAME = "own"  # name of a model or data set given as an object


class ObjectContext(RunContext):
    """Run context of a model and data that are given as Python objects."""

    def __init__(self, make: Callable[[], nn.Module], data: Dataset, device: str) -> None:
        own = Named(name=OBJECT_NAME)
        super().__init__(ContextSpec.eager(own, own, device))
        self.make, self.loaded = make, data

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Content identity: the data's fingerprint, a seed's fresh weights, the model's repr and class sources."""
        model = self.new_model(0)
        seen = hashlib.sha256(repr(model).encode())
        for name, each in model.state_dict().items():
            seen.update(name.encode() + each.detach().cpu().contiguous().numpy().tobytes())
        for kind in sorted({type(each) for each in model.modules()}, key=str):
            with contextlib.suppress(OSError, TypeError):  # class without a source file
                seen.update(inspect.getsource(kind).encode())
        return {"data": self.loaded.fingerprint, "model": {"name": OBJECT_NAME, "seen": seen.hexdigest()[:20]}}

    def _build(self, seed: int) -> Any:
        with seeded(seed):
            return self.make()


class Objective:
    """Objective for ``study.optimize``: trains a trial on every fidelity and returns the full network's value.

    Made by `objective`.
    """

    def __init__(
        self,
        spec: Hpo,
        context: RunContext,
        guide: MapGuidance | None,
        folder: Path | None,
        proxies: Sequence[RunContext] = (),
    ) -> None:
        self.spec, self.context, self.guide, self.folder, self.proxies = spec, context, guide, folder, proxies
        self._plans: dict[int, Plan] = {}
        self._turn = threading.Lock()

    def __call__(self, trial: Trial) -> float:
        """Train one trial, fidelity by fidelity.

        Threads (``n_jobs``) run one after the other, because seeding is per process; let several processes share a
        study instead.

        Raises:
            optuna.TrialPruned: the study's stopper ended the trial, or its training diverged.
        """
        with self._turn:
            return self.climb(1).run_trial(trial)

    def plan(self, batch: int) -> Plan:
        """Return the search plan for a batch size; built and timed on first use."""
        if batch not in self._plans:
            spec = self.spec.model_copy(update={"batch": batch})
            self._plans[batch] = plan(spec, self.context, self.guide, proxies=self.proxies)
        return self._plans[batch]

    def climb(self, batch: int, deadline: float = math.inf) -> TrialRunner:
        """Return the runner that trains ``batch`` trials together."""
        return trial_runner_of(self.plan(batch), self.context, self.folder, None, deadline)


def objective(
    model: str | Mapping[str, Any] | Callable[[], nn.Module],
    data: str | Mapping[str, Any] | Dataset,
    space: Mapping[str, Any],
    *,
    recipe: Recipe | Mapping[str, Any] | None = None,
    densities: Sequence[float] | None = None,
    proxies: Sequence[Callable[[], nn.Module]] | None = None,
    images: Sequence[float] | None = None,
    map: RegimeMap | str | Path | None = None,
    proxy: str = "narrowed",
    epochs: float = 1.0,
    reports: Sequence[float] = (0.1,),
    proxy_reports: Sequence[float] = (0.1,),
    value: str = "calibrated",
    seed: int = 0,
    device: str = "cpu",
    out: str | Path | None = None,
) -> Objective:
    """Make an objective for your own Optuna study, with density as a fidelity.

    Each trial trains small proxies first and the full network last, each from fresh weights. Every report has as its
    step the cumulative cost in units of the cheapest one, so any of Optuna's stoppers can end a weak trial; the value
    of a trial is the full network's on the validation split. The test split is never used.

    Args:
        model: a name, ``{"name": ..., option: ...}``, or a function that returns the full network with fresh weights.
        data: a name, ``{"name": ...}``, or a `Dataset`.
        space: {field of the recipe: ``{"low": ..., "high": ..., "log": ...}`` or a list of values}.
        recipe: training recipe of the full network; a `Recipe` or its fields.
        densities: densities of the proxies; []: only the full network.
        proxies: in place of densities: functions that return smaller networks of your own with fresh weights.
        images: fractions of the training images, stratified by class, on each of which every proxy, or without proxies
            the full network, is trained.
        map: a `RegimeMap`, or the path of a run or grid, that chooses the densities if none of these is given.
        proxy: kind of proxy, a name in `PROXIES`.
        epochs: the epochs of all fidelities but the full training, as a share of the recipe's.
        reports, proxy_reports: shares of the full network's and of a proxy's training at which it is also reported.
        value: "calibrated", "loss" or "error"; see `StudySpec`.
        seed: seed of every random number, together with the trial's number.
        device: "cpu", "cuda", ...
        out: folder in which the results of trials are stored, so that none is computed twice.

    Raises:
        UserError: an argument is invalid; one line for each.
    """
    own = not isinstance(model, (str, Mapping)) or isinstance(data, Dataset)
    fields = recipe.model_dump(exclude={"stop"}) if isinstance(recipe, Recipe) else dict(recipe or {})
    raw: dict[str, Any] = {
        "data": _table(data, "synthetic"),
        "model": _table(model, "mlp"),
        "recipe": {name: each for name, each in fields.items() if each is not None},
        "space": dict(space),
        "ladder": {
            **_fidelities(densities, proxies, images, map),
            **{"proxy": proxy, "epochs": float(epochs)},
            **{"reports": list(reports), "proxy_reports": list(proxy_reports)},
        },
        "study": {"value": value, "pattern": "ladder"},
        "seed": seed,
    }
    spec = resolve_hpo(raw, "objective")
    context = _own(model, data, spec, device) if own else _lab(spec, device)
    guide = None
    if map is not None:
        guide = MapGuidance(map, "map") if isinstance(map, RegimeMap) else _guide(map, spec, own)
    smaller = [ObjectContext(own_function(each), context.loaded, device) for each in proxies or ()]
    return Objective(spec, context, guide, Path(out) if out else None, smaller)


def _fidelities(densities: Any, proxies: Any, images: Any, map: Any) -> dict[str, list[float]]:
    """The table ``[ladder]`` of the fidelities that were passed."""
    if densities is None and proxies is None and images is None and map is None:
        raise UserError("no fidelity: pass densities=[...], e.g. [0.05], proxies=[...], images=[...] or map=RUN")
    if densities is not None and proxies is not None:
        raise UserError("densities and proxies are both given; pass one of them")
    if proxies is not None and not proxies:
        raise UserError("proxies=[] has no function; pass one or more, or densities=[] for the full network only")
    given = {"densities": densities, "images": images}
    return {name: [float(each) for each in values] for name, values in given.items() if values is not None}


def _table(given: Any, instead: str) -> dict[str, Any]:
    if isinstance(given, str):
        return {"name": given}
    return dict(given) if isinstance(given, Mapping) else {"name": instead}


def _own(model: Any, data: Any, spec: Hpo, device: str) -> RunContext:
    from regimes.data import DATASETS
    from regimes.models.build import build

    loaded: Dataset = (
        data if isinstance(data, Dataset) else lookup(DATASETS, spec.data.name, "data")(**spec.data.options)
    )
    make = model
    if isinstance(model, (str, Mapping)):
        make = lambda: build(  # noqa: E731
            spec.model.name, spec.model.options, loaded.input_shape, loaded.classes, int(torch.randint(2**31, ()))
        )
    context = ObjectContext(make, loaded, device)
    check_search(spec, context)
    return context


def _lab(spec: Hpo, device: str) -> RunContext:
    from regimes.hpo.plan import context_of

    return context_of(spec, device, Path())


def _guide(path: str | Path, spec: Hpo, own: bool) -> MapGuidance:
    return MapGuidance(RegimeMap.open(path), str(path)) if own else open_guidance(path, spec.data, spec.model)


def optimize(
    study: optuna.Study, objective: Objective, n_trials: int, batch: int = 16, timeout: float | None = None
) -> None:
    """Run a study in batches of trials, so that the proxies of many trials train as one fleet.

    The study keeps its own storage, sampler and stopper. Trials of earlier calls count.

    Args:
        study: your study.
        objective: objective made by `regimes.objective`.
        n_trials: total number of trials.
        batch: number of trials asked for together.
        timeout: seconds after which nothing new is started. Trials that are then unfinished are marked failed;
            ``regimes.hpo.requeue.requeue_dead_trials`` enqueues them again.
    """
    deadline = time.monotonic() + (timeout if timeout is not None else math.inf)
    run_trials(study, objective.climb(batch, deadline), batch, Limits(n_trials, deadline))
