"""The plan: every stage of a sweep, laid out in the order of the method, and which of them are still to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from regimes.config.keys import canonical
from regimes.config.recipe import Recipe
from regimes.experiment.atomic_files import DamagedFile
from regimes.experiment.stages.discover import DiscoverStage
from regimes.experiment.stages.measure import MeasureStage
from regimes.experiment.stages.pretrained import PretrainedStage
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.stages.stage import Stage, size_of
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.training.fleet import PER_NETWORK_FIELDS


@dataclass(frozen=True)
class Fleet:
    """Stages of one kind that are handed out together: what a worker runs, and what is lost when it is killed.

    Attributes:
        kind: train, prune, retrain or measure.
        stages: networks trained together, one network's masks, or one pruned network's measurements.
    """

    kind: str
    stages: tuple[Stage, ...]

    @property
    def needs(self) -> set[str]:
        """Keys of the stages that have to be done before."""
        own = {stage.key for stage in self.stages}
        return {need.key for stage in self.stages for need in stage.needs} - own

    def halves(self) -> list[Fleet]:
        """The fleet cut in two by networks, or itself when it holds one; a training's snapshots stay together."""
        networks: dict[str, list[Stage]] = {}
        for stage in self.stages:
            networks.setdefault(stage.training if isinstance(stage, TrainStage) else stage.key, []).append(stage)
        if self.kind not in ("train", "retrain") or len(networks) < 2:
            return [self]
        each = list(networks.values())
        parts = (each[: len(each) // 2], each[len(each) // 2 :])
        return [Fleet(self.kind, tuple(stage for network in part for stage in network)) for part in parts]

    def without(self, failed: set[str]) -> Fleet:
        """The fleet without the stages that need a failed one, each of which is added to ``failed``."""
        left = tuple(stage for stage in self.stages if not any(need.key in failed for need in stage.needs))
        failed |= {stage.key for stage in self.stages} - {stage.key for stage in left}
        return self if len(left) == len(self.stages) else Fleet(self.kind, left)


@dataclass(frozen=True)
class Progress:
    """What a store already holds of a plan.

    Attributes:
        todo: stages to do now, each after those it needs.
        done: keys of the stages with a sound record.
        failed: {key: error} of stages that raised.
        blocked: keys of the stages that wait for a failed one.
        diverged: how many of the done ones diverged.
        damaged: {key: line} for each file that is not what was written; those stages are among ``todo``.
    """

    todo: tuple[Stage, ...]
    done: frozenset[str]
    failed: dict[str, str]
    blocked: frozenset[str]
    damaged: dict[str, str]
    diverged: int = 0


def scan_store(stages: Sequence[Stage], store: Store) -> Progress:
    """Read every record of the plan, check every weight file, and say what is left to do.

    Weights that were removed (``regimes clean``) are made again only where a stage to do needs them. Changes nothing.
    """
    damaged: dict[str, str] = {}
    failed: dict[str, str] = {}
    missing: set[str] = set()
    diverged = 0
    without_weights: set[str] = set()  # done, but without weights on disk
    for stage in stages:
        try:
            record = store.read(stage.key)
            diverged += record is not None and record["status"] == "diverged"
            if record is None:
                missing.add(stage.key)
            elif record.get("weights"):
                store.check_weights(stage.key, record)
                if not store.weights_file(stage.key).exists():
                    without_weights.add(stage.key)
        except DamagedFile as error:
            damaged[stage.key] = str(error)
            missing.add(stage.key)
    for key in missing | without_weights:
        failure = store.failure(key)
        if failure is not None:
            failed[key] = failure["error"]
    todo, blocked = _closure(stages, missing, without_weights, failed)
    done = frozenset(stage.key for stage in stages if stage.key not in missing)
    return Progress(todo, done, failed, blocked, damaged, diverged)


def _closure(
    stages: Sequence[Stage], missing: set[str], without_weights: set[str], failed: Iterable[str]
) -> tuple[tuple[Stage, ...], frozenset[str]]:
    """Stages to do, in order, and the keys of those that wait for a failed one."""
    stuck = set(failed)
    remade = missing | without_weights
    for stage in stages:
        if stage.key in remade and any(need.key in stuck for need in stage.needs):
            stuck.add(stage.key)
    wanted = missing - stuck
    for stage in reversed(stages):
        if stage.key in wanted:
            wanted |= {need.key for need in stage.needs if need.key in without_weights}
    todo = tuple(stage for stage in stages if stage.key in wanted)
    return todo, frozenset((stuck & missing).difference(failed))


def with_dependencies(todo: Sequence[Stage], wanted: Callable[[Stage], bool]) -> tuple[Stage, ...]:
    """The stages to do that are wanted, and those that they need."""
    keys: set[str] = set()
    for stage in reversed(todo):
        if stage.key in keys or wanted(stage):
            keys |= {stage.key, *(need.key for need in stage.needs)}
    return tuple(stage for stage in todo if stage.key in keys)


def fleets(stages: Iterable[Stage], capacity: Mapping[str, int], workers: int = 1) -> list[Fleet]:
    """Group stages into fleets: networks that can be trained together, masks and measurements that share a network.

    Args:
        stages: to do, each after those it needs.
        capacity: {"train": n, "retrain": m}, how many networks the engines train at once; fleets are at most that
            large, and smaller where that keeps all workers busy.
        workers: how many processes will share the work.
    """
    stages = list(stages)
    order = {stage.key: index for index, stage in enumerate(stages)}
    groups: dict[tuple[str, ...], list[Stage]] = {}
    asked: dict[str, tuple[int, ...]] = {}
    for stage in stages:
        if isinstance(stage, TrainStage):
            asked[stage.training] = (*asked.get(stage.training, ()), stage.epoch)
    for stage in stages:
        groups.setdefault(_alike(stage, asked), []).append(stage)
    found = []
    for members in groups.values():
        if isinstance(members[0], (TrainStage, RetrainStage)):
            found += [Fleet(members[0].kind, part) for part in _parts(members, capacity[members[0].kind], workers)]
        else:
            found.append(Fleet(members[0].kind, tuple(members)))
    # The dense trainings first: everything waits for them.
    return sorted(found, key=lambda fleet: (fleet.kind not in ("train", "given"), order[fleet.stages[0].key]))


def fleet_count(networks: int, capacity: int, workers: int) -> int:
    """How many fleets so many networks make: as few as the capacity allows, evenly shared out among workers."""
    count = math.ceil(networks / capacity)
    if capacity > 1 and count % workers and networks >= 2 * workers:
        count += workers - count % workers
    return count


def _alike(stage: Stage, asked: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """What stages of one fleet have in common."""
    if isinstance(stage, TrainStage):
        return ("train", _shape(stage.recipe), str(asked[stage.training]), str(size_of(stage.at)))
    if isinstance(stage, RetrainStage):
        # One round after the other; networks that have lost channels go with those that have lost as many.
        small = str(stage.pruned.at[stage.pruned.load.axis[0]]) if stage.pruned.load.structured else ""
        return ("retrain", _shape(stage.recipe), str(stage.pruned.round), small, str(size_of(stage.at)))
    if isinstance(stage, PretrainedStage):
        return ("given",)
    if isinstance(stage, MeasureStage):
        return ("measure", stage.subjects[0].pruned.key)
    if isinstance(stage, DiscoverStage):
        return ("discover", stage.key)
    return ("prune", stage.needs[0].key)


def _shape(recipe: Recipe) -> str:
    """Fields that recipes of one fleet share: all but `PER_NETWORK_FIELDS`. SAM and plain SGD do not mix."""
    return str(canonical([recipe.model_dump(exclude=set(PER_NETWORK_FIELDS)), recipe.sam_rho > 0]))


def _parts(members: Sequence[Stage], capacity: int, workers: int) -> Iterator[tuple[Stage, ...]]:
    """Cut stages into parts of at most ``capacity`` networks, of even size; a training's snapshots stay together."""
    networks: dict[str, list[Stage]] = {}
    for stage in members:
        networks.setdefault(stage.training if isinstance(stage, TrainStage) else stage.key, []).append(stage)
    count = fleet_count(len(networks), capacity, workers)
    each = list(networks.values())
    for part in range(count):
        chosen = each[part * len(each) // count : (part + 1) * len(each) // count]
        if chosen:
            yield tuple(stage for network in chosen for stage in network)
