"""Density as a fidelity for a training loop of your own, in an existing Optuna script."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import optuna
import torch
from optuna.trial import Trial
from torch import Tensor, nn

from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset, Split
from regimes.errors import UserError
from regimes.experiment.context import one_thread
from regimes.hpo import PROXIES
from regimes.hpo.proxies import Proxy
from regimes.models.build import seeded
from regimes.registry import lookup

TIMED_STEPS = 5  # steps over which a fidelity is timed


@dataclass(frozen=True)
class Step:
    """One fidelity of one trial.

    Attributes:
        density: density of the network to train; 1 for the full network.
    """

    density: float
    _trial: Trial
    _make: Callable[[int], nn.Module]
    _step: int
    _seed: int
    _last: bool

    def model(self) -> nn.Module:
        """Return this fidelity's network with fresh weights; every call returns the same weights."""
        return self._make(self._seed)

    def report(self, value: float) -> None:
        """Report a value of this fidelity to the study.

        Raises:
            optuna.TrialPruned: the study's stopper ends the trial.
        """
        self._trial.report(value, self._step)
        if not self._last and self._trial.should_prune():
            raise optuna.TrialPruned


class CustomLadder:
    """Fidelities for a training loop of your own, ``regimes.ladder(...)``; see `climb`.

    Args:
        make: function that returns the full network with fresh weights, drawn from torch's global generator.
        data: a `Dataset`, or a few inputs as a tensor.
        densities: densities of the proxies, each above 0 and below 1.
        proxy: kind of proxy, a name in `PROXIES`; kinds that evaluate a loss need a `Dataset`.
        seed: seed of every network.

    Raises:
        UserError: a density is out of range, or the model cannot be reduced to it.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        data: Dataset | Tensor,
        densities: Sequence[float],
        proxy: str = "narrowed",
        seed: int = 0,
    ) -> None:
        self.make, self.seed = make, seed
        held = data if isinstance(data, Dataset) else _inputs_only(data)
        found: list[tuple[float, Proxy | None]] = []
        for density in sorted({float(each) for each in densities} - {1.0}):
            if not 0 < density < 1:
                raise UserError(f"densities: {density:g} is out of range; allowed: above 0, below 1")
            with one_thread():
                maker = lookup(PROXIES, proxy, "proxy")
                found.append((density, maker(self._whole(seed), held, density, Recipe(), seed)))
        self.rungs = [*found, (1.0, None)]
        self.seconds = [_seconds(self._model(each, seed), held.train.inputs) for _, each in self.rungs]
        self.steps: list[int] = []
        spent = 0.0
        for seconds in self.seconds:
            spent += seconds
            self.steps.append(max((self.steps or [0])[-1] + 1, round(spent / self.seconds[0])))

    def climb(self, trial: Trial) -> Iterator[Step]:
        """Yield the fidelities of a trial, cheapest first: train ``step.model()``, then call ``step.report(value)``.

        ::

            ladder = regimes.ladder(Net, inputs, densities=[0.05])
            def objective(trial):
                lr = trial.suggest_float("lr", 1e-3, 1, log=True)
                for step in ladder.climb(trial):
                    loss = train_and_validate(step.model(), lr)
                    step.report(loss)
                return loss
        """
        seed = trial.user_attrs.get("regimes:seed", trial.number)
        for number, (density, proxy) in enumerate(self.rungs):
            drawn = seed_of("own", self.seed, seed, f"{density:g}")
            last = number == len(self.rungs) - 1
            yield Step(density, trial, lambda s, p=proxy: self._model(p, s), self.steps[number], drawn, last)  # type: ignore[misc]

    def _whole(self, seed: int) -> nn.Module:
        with seeded(seed):
            return self.make()

    def _model(self, proxy: Proxy | None, seed: int) -> nn.Module:
        whole = self._whole(seed)
        return whole if proxy is None else proxy.fresh(whole)


ladder = CustomLadder  # public name: regimes.ladder(...)


def _inputs_only(inputs: Tensor) -> Dataset:
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return Dataset(split, split, split, 1, "inputs")


def _seconds(model: nn.Module, inputs: Tensor) -> float:
    """Return the median seconds of a forward and backward pass."""
    found = []
    trial, inputs = copy.deepcopy(model).train(), inputs.to(next(model.parameters()).device)
    with one_thread(), torch.enable_grad():
        for _ in range(TIMED_STEPS + 1):
            started = time.perf_counter()
            trial(inputs[:64]).sum().backward()
            if inputs.is_cuda:
                torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
    return sorted(found[1:])[TIMED_STEPS // 2]
