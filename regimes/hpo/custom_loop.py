"""Density as a fidelity for a training loop of your own, in an existing Optuna script."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import optuna
import torch
from optuna.trial import Trial
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regimes.config.keys import seed_of
from regimes.config.recipe import Recipe
from regimes.data.dataset import Dataset, Split
from regimes.data.inputs import Inputs, TensorGroup, call
from regimes.device_faults import reraise_device_fault
from regimes.errors import UserError
from regimes.experiment.context import one_thread
from regimes.experiment.memory import synchronize
from regimes.hpo.proxies import Proxy, make_proxy
from regimes.landscape.trial import TRIED_INPUTS, try_network
from regimes.models.build import seeded

TIMED_STEPS = 5  # steps over which a fidelity is timed
Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Step:
    """One fidelity of one trial.

    Attributes:
        density: density of the network to train; 1 for the full network. Of a proxy of your own: its share of the full
            network's parameters.
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
        data: a `Dataset`, or a few inputs: a tensor, or a tuple or dict of tensors that the network takes together.
        densities: densities of the proxies, each above 0 and below 1.
        proxy: kind of proxy, a name in `PROXIES`; kinds that evaluate a loss need a `Dataset`.
        seed: seed of every network.
        proxies: in place of densities: functions like ``make`` that return smaller networks of your own; they are
            sorted by the measured seconds of a training step.

    Attributes:
        rungs: (density, proxy) of every fidelity, cheapest first; the proxy of the full network is None.
        seconds: measured seconds of a training step of each.

    Raises:
        UserError: a density is out of range, the model cannot be reduced to it, or a network does not take the inputs.
    """

    def __init__(
        self,
        make: Make,
        data: Dataset | Inputs | Sequence[Tensor] | Mapping[str, Tensor],
        densities: Sequence[float] | None = None,
        proxy: str = "narrowed",
        seed: int = 0,
        proxies: Sequence[Make] | None = None,
    ) -> None:
        self.make, self.seed = make, seed
        if (densities is None) == (proxies is None):
            raise UserError("ladder: give either densities=[...], e.g. [0.05], or proxies=[...], functions like Net")
        held = _unchanged(self._model(None, seed), data if isinstance(data, Dataset) else _inputs_only(data))
        found: list[tuple[float, Proxy | Make | None]] = []
        for density in sorted({_density(each) for each in densities or ()} - {1.0}):
            with one_thread():
                found.append((density, make_proxy(proxy, self._model(None, seed), held, density, Recipe(), seed)))
        size = _size(self._model(None, seed))
        found += [(_size(self._model(own_function(each), seed)) / size, each) for each in proxies or ()]
        timed = [(_seconds(self._model(each, seed), held.train.inputs), (share, each)) for share, each in found]
        if proxies is not None:
            timed.sort(key=lambda pair: pair[0])
        full = _seconds(self._model(None, seed), held.train.inputs)
        self.rungs = [*(rung for _, rung in timed), (1.0, None)]
        self.seconds = [*(seconds for seconds, _ in timed), full]
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

    def _model(self, proxy: Proxy | Make | None, seed: int) -> nn.Module:
        with seeded(seed):
            model = self.make() if proxy is None or isinstance(proxy, Proxy) else proxy()
        return proxy.fresh(model) if isinstance(proxy, Proxy) else model


ladder = CustomLadder  # public name: regimes.ladder(...)


def _density(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, Real):
        raise UserError(f"densities: {given!r} is not a number; allowed: above 0, below 1")
    density = float(given)
    if not 0 < density <= 1:
        raise UserError(f"densities: {density:g} is out of range; allowed: above 0, below 1")
    return density


def own_function(given: Any) -> Make:
    """Return a user's function that makes a network.

    Raises:
        UserError: it is a network, or no function.
    """
    if isinstance(given, nn.Module) or not callable(given):
        kind = type(given).__name__
        raise UserError(
            f"proxies: {kind} is not a function that returns a fresh network; e.g. proxies=[lambda: Net(8)]"
        )
    function: Make = given
    return function


def _size(model: Any) -> int:
    if not isinstance(model, nn.Module):
        raise UserError(f"ladder: a function returned {type(model).__name__}; each must return a torch.nn.Module")
    return sum(each.numel() for each in model.parameters()) or 1


def _inputs_only(given: Any) -> Dataset:
    inputs = given
    if isinstance(given, Mapping) or (isinstance(given, (tuple, list)) and given):
        parts = list(given.values()) if isinstance(given, Mapping) else given
        if all(isinstance(each, Tensor) for each in parts):
            inputs = TensorGroup(given)
    if not isinstance(inputs, (Tensor, TensorGroup)) or (isinstance(inputs, Tensor) and not inputs.dim()):
        raise UserError(
            f"ladder: inputs are {type(given).__name__}; give a Dataset, or a few inputs: a tensor (n, ...), or a "
            "tuple or dict of them"
        )
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return Dataset(split, split, split, 1, "inputs")


def _unchanged(model: nn.Module, data: Dataset) -> Dataset:
    """The data, with a copy of the training inputs if the network changes them in place."""
    if not isinstance(model, nn.Module) or not try_network(model, data.train.inputs[:TRIED_INPUTS]).changes_inputs:
        return data
    return dataclasses.replace(data, train=Split(data.train.inputs.clone(), data.train.targets))


def _seconds(model: nn.Module, inputs: Inputs) -> float:
    """Return the median seconds of a forward and backward pass."""
    found = []
    trial, few = copy.deepcopy(model).train(), inputs[:64].to(next(model.parameters()).device)
    with one_thread(), torch.enable_grad():
        for _ in range(TIMED_STEPS + 1):
            given = few.clone()  # the network may change them in place
            started = time.perf_counter()
            try:
                parts = [each for each in tree_leaves(call(trial, given)) if isinstance(each, Tensor)]
                torch.stack([each.sum() for each in parts if each.requires_grad]).sum().backward()
            except Exception as error:  # a user's network may raise anything
                reraise_device_fault(error)
                reason = (str(error).splitlines() or [""])[0]
                raise UserError(
                    f"ladder: {type(model).__name__} raised {type(error).__name__} for these inputs: {reason}"
                ) from error
            synchronize(few.device)
            found.append(time.perf_counter() - started)
    return sorted(found[1:])[TIMED_STEPS // 2]
