"""Progress of a search: trials done, full trainings in order, and an estimate of the seconds left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from regimes.hpo.fidelities import FULL, title_of
from regimes.hpo.plan import Plan
from regimes.hpo.requeue import count_finished, is_open
from regimes.hpo.savings import rows_of
from regimes.hpo.trial_attrs import PREFIX, fidelity_of


@dataclass(frozen=True)
class SearchState:
    """A search in progress.

    Attributes:
        studies: the study of each of its phases.
        plan: its plan.
        units: units of its values; see `units_of`.
        workers: number of its processes.
    """

    studies: Sequence[optuna.Study]
    plan: Plan
    units: Mapping[str, Any]
    workers: int = 1

    @property
    def counts(self) -> list[tuple[int, int]]:
        """(trials done, trials of the search) of each study."""
        totals = [self.plan.spec.trials, self.plan.spec.study.promoted]
        found = []
        for study, total in zip(self.studies, totals, strict=False):
            trials = study.get_trials(deepcopy=False)
            done = count_finished([each for each in trials if not is_open(each)])
            found.append((done, max(done, total)))
        return found

    @property
    def full_trainings(self) -> list[FrozenTrial]:
        """Trials whose full training came to its end or diverged, in order of time."""
        epochs = self.plan.ladder.rungs[-1].epochs
        found = []
        for trial in self.studies[-1].get_trials(deepcopy=False):
            rows = rows_of(trial)
            if rows and fidelity_of(rows[-1]) == FULL and (rows[-1]["epoch"] == epochs or "why" in rows[-1]):
                found.append(trial)
        return sorted(found, key=lambda trial: float(rows_of(trial)[-1]["at"]))

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the seconds left, from the mean of the trials done; None before the first full training."""
        full = [sum(row["seconds"] for row in rows_of(each)) for each in self.full_trainings]
        if not full:
            return None
        left = 0.0
        for study, (done, total) in zip(self.studies, self.counts, strict=True):
            spent = sum(row["seconds"] for each in study.get_trials(deepcopy=False) for row in rows_of(each))
            left += (total - done) * spent / max(1, done)
        return left / self.workers + self.plan.spec.final_seeds * float(np.mean(full))

    def line(self) -> str:
        """Return what is done and what is left as one line."""
        (done, total), *base = self.counts
        cheapest = self.plan.ladder.rungs[0].title
        text = f"{done} of {total} trials" + (f" on {cheapest}" if base else "")
        text += "".join(f", {done} of {total} trained in full" for done, total in base)
        values = [value for each in self.full_trainings if (value := final_value(each, self.plan)) is not None]
        if values:
            text += f", best {self.value(min(values))}"
        return text

    def value(self, number: float) -> str:
        """Return a validation value in words, with its unit."""
        return value_in_words(number, self.plan.spec.study.value, self.units)

    def full_training(self, trial: FrozenTrial) -> str:
        """Return in words what one of `full_trainings` was, how it ended, and its rank among them."""
        number = trial.user_attrs.get(f"{PREFIX}promoted", trial.number)
        text = f"trial {number} trained in full, {settings_in_words(trial.params)}: "
        value = final_value(trial, self.plan)
        if value is None:
            return text + str(rows_of(trial)[-1].get("why", "diverged"))
        others = [final_value(each, self.plan) for each in self.full_trainings]
        rank = 1 + sum(each is not None and each < value for each in others)
        return text + f"{self.value(value)}, rank {rank} of {len(others)} so far"


def final_value(trial: FrozenTrial, plan: Plan) -> float | None:
    """Return the value of a trial's last segment; None if it has none."""
    rows = rows_of(trial)
    return rows[-1][plan.spec.study.value] if rows and "why" not in rows[-1] else None


def settings_in_words(params: Mapping[str, Any]) -> str:
    """Return hyperparameters in words, e.g. "learning_rate 0.12, batch_size 32"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in params.items())


def number_in_words(value: float, what: Mapping[str, Any]) -> str:
    """Return a number with its unit, a share wrong as a percentage.

    Args:
        value: the number.
        what: its title and unit; see `units_of`.
    """
    if what["fraction"]:
        return f"{value:.2%}"
    return f"{value:.4g}{'' if what['unit'] in ('1', 'loss') else ' ' + what['unit']}"


def value_in_words(value: float, name: str, units: Mapping[str, Any]) -> str:
    """Return a validation value in words, e.g. "validation loss 0.05123 nat (after temperature scaling)".

    Args:
        value: the value.
        name: the objective: "calibrated", "loss" or "error".
        units: titles and units; see `units_of`.
    """
    what = units["error" if name == "error" else "loss"]
    scaled = " (after temperature scaling)" if name == "calibrated" and what["unit"] == "nat" else ""
    return f"validation {what['title']} {number_in_words(value, what)}{scaled}"


def trial_table(studies: Sequence[optuna.Study], plan: Plan) -> dict[str, Any]:
    """Return every trial as plain data, for figures.

    {"trials": [{"trial", "proxy": number of the proxy trial that was promoted, "state", "params", "values": {name of a
    fidelity: last value}, "ended": whether the last of them is of a whole training}], "fidelities": {name: title},
    "log": names of logarithmic hyperparameters}.
    """
    epochs = {rung.name: rung.epochs for rung in plan.ladder.rungs}
    rows = []
    for number, study in enumerate(studies):
        again = {each.user_attrs.get(f"{PREFIX}instead_of") for each in study.get_trials(deepcopy=False)}
        for trial in study.get_trials(deepcopy=False):
            climbed = rows_of(trial)
            if not climbed or trial.number in again:
                continue
            last = climbed[-1]
            rows.append(
                {
                    "trial": trial.number,
                    "proxy": trial.user_attrs.get(f"{PREFIX}promoted") if number else None,
                    "state": trial.state.name.lower(),
                    "params": trial.params,
                    "values": {fidelity_of(row): row[plan.spec.study.value] for row in climbed},
                    "ended": last["epoch"] == epochs.get(fidelity_of(last)) and "why" not in last,
                }
            )
    titles = {rung.name: title_of(rung.density, rung.images, rung.share) for rung in plan.ladder.rungs}
    return {"trials": rows, "fidelities": titles, "log": [name for name, each in plan.space.items() if each.log]}
