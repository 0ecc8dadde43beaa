"""Training of batches of cells: ask the study, do the stages that are missing, tell the results."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from regimes.config.hpo import Dimension, Hpo
from regimes.experiment.claims import Claims
from regimes.experiment.engine_selection import EngineChoice
from regimes.experiment.executors import in_process
from regimes.experiment.process_identity import this_worker
from regimes.experiment.schedule import fleets, scan_store
from regimes.experiment.stages.stage import Outcome
from regimes.hpo import batch_ask
from regimes.hpo.pruned import DENSITY
from regimes.hpo.pruned.cells import Cell, CellResult, Cells
from regimes.hpo.pruned.map_sampler import MapSampler
from regimes.hpo.search_space import Space, suggest
from regimes.hpo.trial_attrs import PREFIX, note

Look = Callable[[optuna.Study], None]


@dataclass
class RunningCell:
    """A trial in progress.

    Attributes:
        trial: Optuna's trial.
        cell: its cell.
        over: whether the study knows its final state.
    """

    trial: Trial
    cell: Cell
    over: bool = False


def lanes_of(engines: Mapping[str, EngineChoice]) -> dict[str, int]:
    """Return the number of networks trained at once, {"train": n, "retrain": m}."""
    return {kind: each.lanes for kind, each in engines.items()}


def space_of(spec: Hpo) -> dict[str, Dimension]:
    """Return the search space of a search's trials: with several densities, the density is a parameter too."""
    assert spec.pruned is not None
    densities = spec.pruned.densities
    front = {DENSITY: Dimension(choices=densities)} if len(densities) > 1 else {}
    return {**spec.space, **front}


def cell_of(params: Mapping[str, Any], spec: Hpo) -> Cell:
    """Return the cell of a trial's parameters."""
    assert spec.pruned is not None
    items = tuple((name, params[name]) for name in spec.space)
    return Cell(items, float(params.get(DENSITY, spec.pruned.densities[0])), spec.seed)


def cells_of(trials: Iterable[FrozenTrial], spec: Hpo) -> list[Cell]:
    """Return the cells of the trials that have all parameters, each once, in order."""
    names = set(space_of(spec))
    return list(dict.fromkeys(cell_of(each.params, spec) for each in trials if names <= set(each.params)))


class CellRunner:
    """Trains batches of cells of a study.

    Args:
        spec: the search's settings.
        cells: the cells' stages and results.
        engines: {"train": ..., "retrain": ...}.
        look: called after every trial.
        deadline: time (``time.monotonic``) after which no fleet is started.
    """

    def __init__(
        self,
        spec: Hpo,
        cells: Cells,
        engines: Mapping[str, EngineChoice],
        look: Look | None = None,
        deadline: float = math.inf,
    ) -> None:
        self.spec, self.cells, self.engines, self.look, self.deadline = spec, cells, engines, look, deadline
        self.space: Space = space_of(spec)

    def ask(self, study: optuna.Study, count: int) -> list[RunningCell]:
        """Ask a study for trials.

        A setting that the sampler draws is tried at every density, because its dense training serves all of them;
        trials that were enqueued are taken as they are. Where networks are trained one by one, one setting is asked for
        at a time, so that the sampler knows the results of all before.
        """
        if isinstance(study.sampler, MapSampler):
            begun = cells_of(study.get_trials(deepcopy=False), self.spec)
            study.sampler.cost = functools.partial(self.cells.costs, begun=begun)
        densities = self.space[DENSITY].choices or () if DENSITY in self.space else ()
        if all(engine.lanes == 1 for engine in self.engines.values()):
            count = min(count, max(1, len(densities)))
        found: list[RunningCell] = []
        while len(found) < count:
            for trial, as_it_is in self._asked(study, math.ceil((count - len(found)) / max(1, len(densities)))):
                found.append(RunningCell(trial, cell_of(trial.params, self.spec)))
                others = [] if as_it_is else [each for each in densities if each != trial.params[DENSITY]]
                found += [self._beside(study, trial, density) for density in others[: count - len(found)]]
        return found

    def _asked(self, study: optuna.Study, settings: int) -> list[tuple[Trial, bool]]:
        """Trials drawn by the sampler, with whether their density is to be taken as it is."""
        if isinstance(study.sampler, MapSampler):
            asked = batch_ask.ask(study, 1, self.space, 1)
            planned = study.sampler.planned
        else:
            lanes = self.engines["train"].lanes
            asked = batch_ask.ask(study, settings, self.space, lanes, held=(DENSITY,), min_group=1)
            planned = False
        known = study.get_trials(deepcopy=False)
        return [(each, planned or "fixed_params" in known[each.number].system_attrs) for each in asked]

    def _beside(self, study: optuna.Study, drawn: Trial, density: float) -> RunningCell:
        """A trial of the same setting at another density."""
        sampler, params = study.sampler, {**drawn.params, DENSITY: density}
        study.sampler = batch_ask.fixed_sampler(params, optuna.samplers.RandomSampler(seed=0))
        try:
            trial = study.ask()
            note(trial, "worker", this_worker())
            suggest(trial, self.space)
        finally:
            study.sampler = sampler
        return RunningCell(trial, cell_of(trial.params, self.spec))

    def run_batch(self, study: optuna.Study, batch: Sequence[RunningCell]) -> None:
        """Do the stages of a batch that are missing; tell each trial as soon as its last stage is done."""
        self.write_layout(study)
        stages = list({stage.key: stage for each in batch for stage in self.cells.stages(each.cell)}.values())
        self.cells.take_known(stages)
        todo = scan_store(stages, self.cells.store).todo
        left, failed = {stage.key for stage in todo}, set[str]()

        def tell_done() -> None:
            for running in batch:
                keys = {stage.key for stage in self.cells.stages(running.cell)}
                if not running.over and (keys & failed or not keys & left):
                    self._tell(study, running)

        def report(outcome: Outcome) -> None:
            left.discard(outcome.key)
            if outcome.error is not None:
                failed.add(outcome.key)
            tell_done()

        tell_done()
        with Claims(self.cells.store.folder) as claims:
            work = fleets(todo, lanes_of(self.engines))
            in_process(work, self.cells.context, claims, report, until=lambda: time.monotonic() >= self.deadline)

    def _tell(self, study: optuna.Study, running: RunningCell) -> None:
        """Tell a finished trial. One that diverged is PRUNED, so that samplers avoid its setting; in a front, where
        Optuna allows no pruned trials, and after an error it is FAIL."""
        result, trial, front = self.cells.result(running.cell), running.trial, DENSITY in self.space
        try:
            note(trial, "cell", row_of(running.cell, result))
            if not result.why:
                values = [result.value, self.cells.cost(running.cell)] if front else result.value
                study.tell(trial, values, skip_if_finished=True)
            else:
                note(trial, "why", result.why)
                state = TrialState.PRUNED if result.why == "diverged" and not front else TrialState.FAIL
                study.tell(trial, state=state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            running.over = True  # by another process
            return
        running.over = True
        if self.look is not None:
            self.look(study)

    def write_layout(self, study: optuna.Study) -> None:
        """Write the layout of the run folder, from all trials of the study."""
        trials = study.get_trials(deepcopy=False)
        store = self.cells.store
        store.write_json("layout.json", self.cells.layout(cells_of(trials, self.spec)))


def row_of(cell: Cell, result: CellResult) -> dict[str, Any]:
    """Return a cell's result as plain JSON, for the user attributes of its trial; non-finite numbers become null."""
    measures = {name: each if math.isfinite(each) else None for name, each in result.measures.items()}
    return {"density": cell.density, "at": round(time.time(), 3), **measures}


def rows(study: optuna.Study) -> list[tuple[FrozenTrial, dict[str, Any]]]:
    """Return the finished trials with their results, in order of completion."""
    name = f"{PREFIX}cell"
    done = [each for each in study.get_trials(deepcopy=False) if name in each.user_attrs and each.state.is_finished()]
    return sorted(((each, each.user_attrs[name]) for each in done), key=lambda pair: float(pair[1]["at"]))
