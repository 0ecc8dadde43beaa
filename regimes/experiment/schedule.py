"""Scheduling: the progress of a run, and the grouping of pending stages into fleets."""

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
from regimes.experiment.stages.prune import PruneStage
from regimes.experiment.stages.retrain import RetrainStage
from regimes.experiment.stages.stage import Stage, size_of
from regimes.experiment.stages.train import TrainStage
from regimes.experiment.store import Store
from regimes.training.fleet import PER_NETWORK_FIELDS


@dataclass(frozen=True)
class Fleet:
    """Stages of one kind that a worker does together.

    Attributes:
        kind: "train", "given", "prune", "discover", "retrain" or "measure".
        stages: networks trained together, masks of one network, or measurements of one pruned network.
    """

    kind: str
    stages: tuple[Stage, ...]

    @property
    def needs(self) -> set[str]:
        """Keys of the stages that must be done first."""
        own = {stage.key for stage in self.stages}
        return {need.key for stage in self.stages for need in stage.needs} - own

    def halves(self) -> list[Fleet]:
        """Return the fleet split in two by networks, or itself if it has one; snapshots of a training stay together."""
        networks: dict[str, list[Stage]] = {}
        for stage in self.stages:
            networks.setdefault(stage.training if isinstance(stage, TrainStage) else stage.key, []).append(stage)
        if self.kind not in ("train", "retrain") or len(networks) < 2:
            return [self]
        each = list(networks.values())
        parts = (each[: len(each) // 2], each[len(each) // 2 :])
        return [Fleet(self.kind, tuple(stage for network in part for stage in network)) for part in parts]

    def without(self, failed: set[str]) -> Fleet:
        """Return the fleet without stages that need a failed one; the keys of those are added to ``failed``."""
        rest = tuple(stage for stage in self.stages if not any(need.key in failed for need in stage.needs))
        failed |= {stage.key for stage in self.stages} - {stage.key for stage in rest}
        return self if len(rest) == len(self.stages) else Fleet(self.kind, rest)


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        todo: pending stages that can be done, each after those it needs.
        done: keys of the stages with an intact record.
        failed: {key: error} of stages that raised.
        blocked: keys of the stages that need a failed one.
        diverged: keys of the done stages that diverged.
        damaged: {key: message} of damaged files; their stages are among ``todo``.
    """

    todo: tuple[Stage, ...]
    done: frozenset[str]
    failed: dict[str, str]
    blocked: frozenset[str]
    damaged: dict[str, str]
    diverged: frozenset[str] = frozenset()


NOTHING = Progress((), frozenset(), {}, frozenset(), {})


def scan_store(stages: Sequence[Stage], store: Store, before: Progress = NOTHING) -> Progress:
    """Read every record, check every weight file, and return the progress; writes nothing.

    Weights that were removed (``regimes clean``) are recomputed only if a pending stage needs them.

    Args:
        stages: all stages, each after those it needs.
        store: the run folder.
        before: progress found earlier by the same command; what was done then is not read again.
    """
    known = before.done - {stage.key for stage in before.todo}
    damaged: dict[str, str] = {}
    failed: dict[str, str] = {}
    missing: set[str] = set()
    diverged = set(before.diverged & known)
    without_weights: set[str] = set()  # done, but without weights on disk
    for stage in stages:
        if stage.key in known:
            continue
        try:
            record = store.read(stage.key)
            if record is None:
                missing.add(stage.key)
                continue
            if record["status"] == "diverged":
                diverged.add(stage.key)
            if record.get("weights"):
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
    todo, blocked = _pending_and_blocked(stages, missing, without_weights, failed)
    done = frozenset(stage.key for stage in stages if stage.key not in missing)
    return Progress(todo, done, failed, blocked, damaged, frozenset(diverged))


def _pending_and_blocked(
    stages: Sequence[Stage], missing: set[str], without_weights: set[str], failed: Iterable[str]
) -> tuple[tuple[Stage, ...], frozenset[str]]:
    """Pending stages, in order, and the keys of those that need a failed one."""
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
    """Return the pending stages that are wanted, and those that they need."""
    keys: set[str] = set()
    for stage in reversed(todo):
        if stage.key in keys or wanted(stage):
            keys |= {stage.key, *(need.key for need in stage.needs)}
    return tuple(stage for stage in todo if stage.key in keys)


def fleets(stages: Iterable[Stage], capacity: Mapping[str, int], workers: int = 1) -> list[Fleet]:
    """Group stages into fleets: networks that can be trained together; masks and measurements of one network.

    Args:
        stages: pending stages, each after those it needs.
        capacity: {"train": n, "retrain": m}, the maximum size of fleets; they are smaller if that keeps all workers
            busy.
        workers: number of worker processes.
    """
    stages = list(stages)
    order = {stage.key: index for index, stage in enumerate(stages)}
    groups: dict[tuple[str, ...], list[Stage]] = {}
    asked: dict[str, tuple[int, ...]] = {}
    for stage in stages:
        if isinstance(stage, TrainStage):
            asked[stage.training] = (*asked.get(stage.training, ()), stage.epoch)
    for stage in stages:
        groups.setdefault(_fleet_key(stage, asked), []).append(stage)
    grouped = []
    for members in groups.values():
        if isinstance(members[0], (TrainStage, RetrainStage)):
            kind = members[0].kind
            grouped += [Fleet(kind, part) for part in _split_evenly(members, capacity[kind], workers)]
        else:
            grouped.append(Fleet(members[0].kind, tuple(members)))
    # Dense trainings first: everything depends on them.
    return sorted(grouped, key=lambda fleet: (fleet.kind not in ("train", "given"), order[fleet.stages[0].key]))


def fleet_count(networks: int, capacity: int, workers: int) -> int:
    """Return the number of fleets: as few as the capacity allows, but a multiple of the workers if possible."""
    count = math.ceil(networks / capacity)
    if capacity > 1 and count % workers and networks >= 2 * workers:
        count += workers - count % workers
    return count


def _fleet_key(stage: Stage, asked: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Key that the stages of one fleet share."""
    if isinstance(stage, TrainStage):
        return ("train", _stackable_key(stage.recipe), str(asked[stage.training]), str(size_of(stage.coords)))
    if isinstance(stage, RetrainStage):
        # One round after the other; networks that have lost channels go with those that have lost as many.
        small = str(stage.pruned.coords[stage.pruned.load.axis[0]]) if stage.pruned.load.structured else ""
        return ("retrain", _stackable_key(stage.recipe), str(stage.pruned.round), small, str(size_of(stage.coords)))
    if isinstance(stage, PretrainedStage):
        return ("given",)
    if isinstance(stage, MeasureStage):
        return ("measure", stage.subjects[0].pruned.key)
    if isinstance(stage, DiscoverStage):
        return ("discover", stage.key)
    return ("prune", stage.needs[0].key)


def claim_of(stage: Stage) -> str:
    """Return the name of the work that a stage belongs to, which one command does at a time: the snapshots of a
    training, the masks of a dense network, the measurements of a pruned network; other stages are work of their own."""
    if isinstance(stage, TrainStage):
        return stage.training
    if isinstance(stage, PruneStage):
        return f"{stage.needs[0].key}-masks"
    if isinstance(stage, MeasureStage):
        return f"{stage.subjects[0].pruned.key}-measures"
    return stage.key


def _stackable_key(recipe: Recipe) -> str:
    """Fields that the recipes of one fleet share: all but `PER_NETWORK_FIELDS`; SAM and plain SGD do not mix."""
    return str(canonical([recipe.model_dump(exclude=set(PER_NETWORK_FIELDS)), recipe.sam_rho > 0]))


def _split_evenly(members: Sequence[Stage], capacity: int, workers: int) -> Iterator[tuple[Stage, ...]]:
    """Split stages into parts of at most ``capacity`` networks and even size; snapshots of a training stay together."""
    networks: dict[str, list[Stage]] = {}
    for stage in members:
        networks.setdefault(stage.training if isinstance(stage, TrainStage) else stage.key, []).append(stage)
    count = fleet_count(len(networks), capacity, workers)
    each = list(networks.values())
    for part in range(count):
        chosen = each[part * len(each) // count : (part + 1) * len(each) // count]
        if chosen:
            yield tuple(stage for network in chosen for stage in network)
