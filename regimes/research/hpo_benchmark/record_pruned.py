"""Record the table of pruned networks: train settings, stop early, prune, retrain all by one recipe, and measure.

Trainings and measurements are the stages of a sweep, stored under their content keys in the run folder, so that a
recording is killed and resumed without loss. Settings are done in parts; after each the table is written, so that what
is recorded so far can be used. Every setting and dense seed has random numbers of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from regimes.config.hpo import INTEGERS, Hpo
from regimes.config.hpo_file import read_hpo
from regimes.config.recipe import Recipe
from regimes.config.sweep import LoadConfig
from regimes.config.sweep_file import read_toml
from regimes.data.dataset import guessing_error
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.claims import Claims
from regimes.experiment.context import RunContext, one_thread
from regimes.experiment.engine_selection import select_engine
from regimes.experiment.environment import environment
from regimes.experiment.executors import Pool, by_processes
from regimes.experiment.schedule import fleets, scan_store
from regimes.experiment.stages.measure import MeasureStage
from regimes.experiment.stages.prune import PruneStage
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.stages.stage import Outcome, Stage
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.hpo.plan import context_of
from regimes.hpo.search_space import recipe_with
from regimes.hpo.validation import validate
from regimes.knobs import EPOCHS
from regimes.research.hpo_benchmark.fidelities import typical_recipes
from regimes.research.hpo_benchmark.pruned_table import EVALUATED, assemble_pruned, pairs_of, snapshot_epochs
from regimes.research.hpo_benchmark.record import Setting, settings
from regimes.research.hpo_benchmark.recordings import PrunedDesign, Recording
from regimes.research.hpo_benchmark.timing import machine_load, seconds_of_asking, time_pruned
from regimes.research.page import Say

PART = 8  # settings after which the table is written
SEEDS_PER_SETTING = 8  # seeds of different settings are different
MEASURES: dict[str, dict[str, Any]] = {  # {metric: options}, cheap ones
    "lmc": {},
    "cka": {"images": 256},
    "hessian_trace": {"images": 64, "rel_stderr": 0.1},
}
Place = tuple[int, ...]  # index in the table: setting, dense seed, and so on


@dataclass(frozen=True)
class PrunedRecorder:
    """Recorder of the table of pruned networks.

    Attributes:
        spec: the search.
        design: sizes of the table.
        settings: all settings of the recording; the table has the first ones.
        context: data, model and numerics.
        facts: how the table is made.
    """

    spec: Hpo
    design: PrunedDesign
    settings: Sequence[Setting]
    context: RunContext
    facts: Mapping[str, Any]

    @cached_property
    def store(self) -> Store:
        """The store of the run folder."""
        return Store(self.context.spec.folder)

    def stages(self, setting: int, dense_seed: int) -> Iterator[tuple[Place, Stage]]:
        """Yield the stages of one dense training with their places in the table, each after those it needs."""
        design, splits = self.design, self.context.loaded
        images = (len(splits.train.targets), len(splits.val.targets), len(splits.test.targets))
        recipe = evaluated_recipe(self.spec.recipe, self.settings[setting])
        retrain = evaluated_recipe(self.spec.recipe, {})
        seed = setting * SEEDS_PER_SETTING + dense_seed
        for at, epoch in enumerate(snapshot_epochs(design, recipe.epochs)):
            place = (setting, dense_seed, at)
            coords = {"setting": setting, "epochs": epoch, "dense_seed": seed}
            stopped = recipe.model_copy(update=EPOCHS.changes(recipe, epoch))
            dense = TrainStage(self.context.identity, stopped, seed, coords, images)
            yield place, dense
            for number, density in enumerate(design.densities):
                pruned = PruneStage(dense, density, LoadConfig(density=(density,)))
                copies = [RetrainStage(pruned, retrain, copy) for copy in range(design.copies)]
                yield (*place, number), pruned
                yield from (((*place, number, copy), stage) for copy, stage in enumerate(copies))
                for pair, (i, j) in enumerate(pairs_of(design)):
                    for name in ("lmc", "cka"):
                        subjects = (copies[i], copies[j])
                        yield (*place, number, pair), MeasureStage(name, MEASURES[name], subjects, pair)
                yield (*place, number), MeasureStage("hessian_trace", MEASURES["hessian_trace"], (copies[0],), None)

    def record(self, trainings: Sequence[tuple[int, int]], workers: int) -> None:
        """Do all stages of some (setting, dense seed), and evaluate their networks.

        Raises:
            UserError: a stage failed.
        """
        stages = [stage for training in trainings for _, stage in self.stages(*training)]
        trained = {stage.key: stage for stage in stages if isinstance(stage, TrainStage | RetrainStage)}

        def evaluate(outcome: Outcome) -> None:
            if outcome.error is None and outcome.key in trained:
                self.evaluation(trained[outcome.key])

        todo, lanes = scan_store(stages, self.store).todo, {"train": 1, "retrain": self.facts["engine"]["lanes"]}
        spec = self.context.spec
        with Claims(spec.folder, workers) as claims:
            by_processes(fleets(todo, lanes, workers), spec, claims, evaluate, Pool(workers), [spec.device])
        failed = scan_store(stages, self.store).failed
        if failed:
            key, error = next(iter(failed.items()))
            raise UserError(
                f"{self.store.folder}: {len(failed)} stages failed, {key}: {error}; remove its folder failures to retry"
            )
        for stage in trained.values():  # evaluations that a killed command owes
            self.evaluation(stage)

    def evaluation(self, stage: TrainStage | RetrainStage) -> dict[str, float | None]:
        """Return the errors and losses of a trained network on all splits, from the store or evaluated now."""
        key = f"{stage.key}-evaluated"
        record = self._read(key)
        if record is None:
            done = self.store.read(stage.key)
            assert done is not None
            values: dict[str, float | None] = dict.fromkeys(EVALUATED)
            if done["status"] != "diverged":
                with one_thread():
                    model = self.context.model_with(self.store.weights(stage.key))
                    for split in ("train", "val", "test"):
                        found = validate(model, getattr(self.context.data, split), stage.recipe)
                        named = {f"{split}_{name}": each for name, each in dataclasses.asdict(found).items()}
                        values |= {name: _finite(each) for name, each in named.items() if name in EVALUATED}
            about = {"kind": "evaluated", "status": "ok", "numerics": self.context.spec.numerics.id}
            record = {**about, "at": dict(stage.coords), "values": values}
            self.store.write(key, record)
        return dict(record["values"])

    def values(self, trainings: Sequence[tuple[int, int]]) -> dict[str, dict[Place, Any]]:
        """Return what is recorded of some (setting, dense seed): {variable: {index: value}}."""
        found: dict[str, dict[Place, Any]] = {}
        for place, stage in (each for training in trainings for each in self.stages(*training)):
            record = self._read(stage.key)
            if record is None:
                continue
            if isinstance(stage, TrainStage | RetrainStage):
                if self._read(f"{stage.key}-evaluated") is None:
                    continue
                of = "dense_" if isinstance(stage, TrainStage) else ""
                for name, each in self.evaluation(stage).items():
                    found.setdefault(f"{of}{name}", {})[place] = each
                curve = [_finite(row["val_error"]) for row in record["history"]]
                curve += [None if record["status"] == "diverged" else math.nan] * (stage.recipe.epochs - len(curve))
                at = place[:2] if of else place  # the last snapshot has the whole history
                if not of or place[2] == len(self.design.snapshots) - 1:
                    found.setdefault(f"{of}val_error_by_epoch", {})[at] = curve
            elif record["status"] != "diverged":
                name = stage.name if isinstance(stage, MeasureStage) else "kept"
                measured = record["values"][name]["value"]
                found.setdefault(name, {})[place] = math.nan if measured is None else measured
        return found

    def table(self, trainings: Sequence[tuple[int, int]]) -> xr.Dataset:
        """Return the table of what is recorded."""
        return assemble_pruned(self.design, self.spec.recipe.epochs, self.settings, self.values(trainings), self.facts)

    def better(self) -> list[int]:
        """Return the better quarter of the settings: those with the best rank at any density.

        Settings are ranked by the lowest validation loss, calibrated, of any snapshot, a mean over the copies.
        """
        data = self.table([(number, 0) for number in range(self.design.settings)])
        losses = data["val_calibrated"].isel(dense_seed=0).mean("copy").min("snapshot")
        ranks = rankdata(losses.values, axis=0).min(axis=1)
        return sorted(int(each) for each in np.argsort(ranks, kind="stable")[: self.design.better])

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            return self.store.read(key)
        except DamagedFile:
            return None


def evaluated_recipe(recipe: Recipe, setting: Setting) -> Recipe:
    """Return the recipe of a setting, with an evaluation after every epoch."""
    return recipe_with(recipe, {**setting, "last": recipe.epochs})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def record_pruned(recording: Recording, folder: Path, workers: int, say: Say) -> Iterator[xr.Dataset]:
    """Make or complete a table; yield it after each part of the settings.

    Args:
        recording: the recording.
        folder: run folder, in which trainings are kept.
        workers: number of processes.
        say: reports progress.
    """
    spec, design = read_hpo(recording.file), recording.pruned
    context = context_of(spec, "cpu", folder)
    facts = {
        **_timed(spec, design, context, folder, say),
        "spec": read_toml(Path(recording.file), "search file", recording.file),
        "classes": context.loaded.classes,
        "chance_error": guessing_error(context.loaded.test.targets),
        "whole": list(INTEGERS),
        "environment": environment(),
    }
    numerics = dataclasses.replace(context.spec.numerics, engine=facts["engine"]["engine"])
    context.spec = dataclasses.replace(context.spec, numerics=numerics, fingerprint=context.loaded.fingerprint)
    recorder = PrunedRecorder(spec, design, settings(spec.space, recording.settings), context, facts)
    done: list[tuple[int, int]] = []
    first, most = design.dense_seeds
    for seeds in (range(first), range(first, most)):
        chosen = range(design.settings) if seeds.start == 0 else recorder.better()
        trainings = [(number, seed) for number in chosen for seed in seeds]
        for start in range(0, len(trainings), PART):
            part = trainings[start : start + PART]
            recorder.record(part, workers)
            done += part
            say(f"{len(done)} of {design.dense_trainings} dense trainings, with {design.retrainings} retrainings each")
            yield recorder.table(done)


def _timed(spec: Hpo, design: PrunedDesign, context: RunContext, folder: Path, say: Say) -> dict[str, Any]:
    """The engine of retrainings and the seconds of everything, decided and measured once per folder."""
    path = folder / "timing.json"
    try:
        kept = read_checked(path)
    except DamagedFile:
        kept = None
    if kept is None:
        say(f"timing trainings; nothing else should run on this machine ({machine_load()})")
        beside, together = machine_load(), design.retrainings
        with one_thread():
            choice = select_engine(context, typical_recipes(spec), together)
            seconds = time_pruned(spec, context, choice, design.densities[len(design.densities) // 2], MEASURES)
        asking = seconds_of_asking(spec)
        kept = {"engine": dataclasses.asdict(choice), "seconds": seconds, "asking": asking, "beside": beside}
        write_checked(path, kept)
    return kept
