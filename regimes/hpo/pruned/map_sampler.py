"""Optuna sampler that searches with the surfaces of a regime map: value over hyperparameters and density.

A Gaussian process (that of the maps, see `regimes.regime_map.gaussian_process`) is fitted to all finished trials, over
all densities at once. The next setting is the one with the largest expected improvement per cost; where the density is
a parameter it is tried at those densities at which that pays, in consecutive trials, which share its dense training.
While the model predicts no better than chance, the stock sampler (TPE) draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm, qmc, spearmanr

from regimes.hpo.pruned.observed_cells import Observed, UnitSpace, observed
from regimes.hpo.samplers import tpe
from regimes.regime_map.gaussian_process import GaussianProcess, fit

Numbers = NDArray[np.float64]
Cost = Callable[[Sequence[Mapping[str, Any]]], Numbers]  # settings with density -> cost of their cells

STARTUP_TRIALS = 8  # settings drawn by the stock sampler before the first model
CANDIDATES = 256  # settings drawn at random, for each proposal
NEIGHBOURS = 24  # around each of the best settings
BEST = 4
NEIGHBOUR_SCALE = 0.12  # standard deviation of a neighbour, in lengths of the axes
MIN_DISTANCE = 0.04  # of a proposal from all cells, on one axis at least, in lengths of the axes
TILT_STEP = 0.25  # from a cell to a hotter one, in lengths of the space's diagonal of temperatures
SIGN_MEAN = math.sqrt(2 / math.pi)  # mean of the absolute value of a standard normal variable
MIN_RANK_CORRELATION = 0.2  # of left-out predictions with the values, from which the model is trusted
MIN_SPREAD = 0.05  # of the logarithm of the values


class MapSampler(BaseSampler):
    """Sampler over the surfaces of a regime map.

    Args:
        seed: seed of the candidates, and of the stock sampler.
        cost: returns the cost of cells, e.g. less where their dense training exists; None: all the same.
        stock: sampler that draws while the model is not trusted; None: TPE.
        startup: number of settings that it draws first.
        landscape: whether the landscape of each cell tilts the surface hotter or colder, if LMC, CKA and training error
            are measured; see `cell_direction`.
        chance_error: error of guessing, for that.
    """

    def __init__(
        self,
        seed: int,
        cost: Cost | None = None,
        stock: BaseSampler | None = None,
        startup: int = STARTUP_TRIALS,
        landscape: bool = False,
        chance_error: float = 0.9,
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.cost, self.startup, self.landscape, self.chance_error = cost, startup, landscape, chance_error
        self.stock = stock or tpe(seed)
        self.queue: list[dict[str, Any]] = []  # cells of a proposal that are not asked for yet
        self._last: tuple[tuple[int, float], GaussianProcess | None] | None = None
        self.planned = False  # whether the last cell was chosen by the model, with its density
        self._space = IntersectionSearchSpace(include_pruned=True)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that all finished trials have."""
        return {name: each for name, each in self._space.calculate(study).items() if not each.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the next cell."""
        if self.queue:
            return self.queue.pop(0)
        space = UnitSpace.of(search_space)
        proposal = None if space is None else self._proposal(study, space)
        self.planned = proposal is not None
        if proposal is None:
            return self.stock.sample_relative(study, trial, search_space)
        self.queue = proposal[1:]
        return proposal[0]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that no finished trial has with the stock sampler."""
        return self.stock.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Call the stock sampler's hook."""
        self.stock.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Call the stock sampler's hook."""
        self.stock.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Draw from fresh seeds from now on."""
        self.random = np.random.default_rng()
        self.stock.reseed_rng()

    # -- proposals ----------------------------------------------------------------------------------------------------

    def _proposal(self, study: optuna.Study, space: UnitSpace) -> list[dict[str, Any]] | None:
        """Cells of the best setting, the most promising density first; None if the model is not trusted."""
        seen = observed(study, space, self.chance_error if self.landscape else None)
        if len(set(seen.trainings)) < self.startup:
            return None
        model = self._model(seen)
        if model is None:
            return None
        candidates = self._candidates(seen, space)
        settings = np.array([space.setting(each) for each in candidates])
        surface = Surface.of(model, settings, space, seen)
        gains = surface.gains(seen.best(model.predict(seen.places)[0], space), space)
        tried = _near(space.at_densities(settings), np.concatenate([seen.places, seen.pending]))
        gains[tried.reshape(gains.shape)] = 0.0
        chosen, densities = choose(gains, self._costs(candidates, space))
        return [space.at_density(candidates[chosen], density) for density in densities]

    def _model(self, seen: Observed) -> GaussianProcess | None:
        """The surface fitted to the finished cells; None if it is not trusted. Fitted once for the same cells."""
        key = (len(seen.values), float(seen.values.sum()))
        if self._last is None or self._last[0] != key:
            trusted = is_trusted(seen.places, seen.values, seen.trainings)
            self._last = key, fitted(seen.places, seen.values, seen.trainings) if trusted else None
        return self._last[1]

    def _candidates(self, seen: Observed, space: UnitSpace) -> list[dict[str, Any]]:
        """Settings: space-filling, around the best, and those that were tried, at every epoch of the space."""
        count = space.count
        draws = qmc.Sobol(count, seed=self.random).random(CANDIDATES)
        best = seen.places[np.argsort(seen.values)[:BEST]][:, None, :count]
        near = best + NEIGHBOUR_SCALE * self.random.standard_normal((len(best), NEIGHBOURS, count))
        fresh = space.snapped(np.clip(np.concatenate([draws, near.reshape(-1, count)]), 0.0, 1.0))
        return [*(space.params(each) for each in fresh), *space.at_every_epoch(seen.settings)]

    def _costs(self, candidates: Sequence[Mapping[str, Any]], space: UnitSpace) -> Numbers:
        """Cost (n, 1 + densities) of each setting's dense training, and of each of its densities."""
        if self.cost is None:
            return np.ones((len(candidates), 1 + len(space.widths)))
        return self.cost(candidates)


def choose(gains: Numbers, costs: Numbers) -> tuple[int, list[int]]:
    """Return the setting, and its densities in order of gain, with the largest gain per cost.

    Args:
        gains: (n, d) expected improvement at each density.
        costs: (n, 1 + d) cost of the dense training, and of each density.
    """
    order = np.argsort(-gains / costs[:, 1:], axis=1)
    gained = np.take_along_axis(gains, order, 1).cumsum(1)
    spent = costs[:, :1] + np.take_along_axis(costs[:, 1:], order, 1).cumsum(1)
    rate = gained / spent
    setting, count = np.unravel_index(int(rate.argmax()), rate.shape)
    return int(setting), [int(each) for each in order[setting, : count + 1]]


@dataclass
class Surface:
    """Posterior of the value at candidate settings and all densities.

    Attributes:
        mean, spread: (n, d) posterior mean and standard deviation of the smooth part of the surface; what is rough or
            noise cannot be sought.
    """

    mean: Numbers
    spread: Numbers

    @classmethod
    def of(cls, model: GaussianProcess, settings: Numbers, space: UnitSpace, seen: Observed) -> Surface:
        """Return the posterior at settings, with pending cells believed to come out as predicted, and tilted hotter or
        colder around cells whose direction is known."""
        places, more = space.at_densities(settings), _further(seen, space)
        mean, spread = model.predict(np.concatenate([places, more]))
        variance = spread[: len(places)] ** 2
        columns = model.cross(np.concatenate([places, more]), more)  # (n d + e, e)
        for known in _known_values(model, seen, mean[len(places) :], columns[len(places) :]):
            column = columns @ known.weights
            total = known.weights @ column[len(places) :] + known.noise
            mean = mean + column * (known.value - known.weights @ mean[len(places) :]) / total
            variance -= column[: len(places)] ** 2 / total
            columns -= np.outer(column, column[len(places) :]) / total
        smooth = np.sqrt(np.clip(variance - model.roughness**2, 1e-12, None))
        return cls(mean[: len(places)].reshape(len(settings), -1), smooth.reshape(len(settings), -1))

    def gains(self, best: Numbers, space: UnitSpace) -> Numbers:
        """Return the expected improvement (n, d).

        With several densities, of the area under the front of best value against density: a cell improves the front
        from its density up to where the front is already better.

        Args:
            best: (d,) the front, see `Observed.best`.
            space: the search space.
        """
        found = np.zeros_like(self.mean)
        for place in range(self.mean.shape[1]):
            for beyond in range(place, self.mean.shape[1]):
                gain = expected_improvement(best[beyond], self.mean[:, place], self.spread[:, place])
                found[:, place] += space.widths[beyond] * gain
        return found


@dataclass(frozen=True)
class KnownValue:
    """A linear combination of values at further places that counts as observed."""

    weights: Numbers
    value: float
    noise: float


def _further(seen: Observed, space: UnitSpace) -> Numbers:
    """Places (p + 2 a, k) of pending cells, of cells whose direction is known, and of these moved hotter."""
    anchors = seen.places[np.isfinite(seen.p_hotter)]
    moved = np.clip(anchors + TILT_STEP * space.hotter, 0.0, 1.0)
    return np.concatenate([seen.pending, anchors, moved])


def _known_values(model: GaussianProcess, seen: Observed, mean: Numbers, covariance: Numbers) -> Iterator[KnownValue]:
    """Values of pending cells, as predicted; and of the step from a cell to a hotter one, from its probability.

    A step with spread s is normal with mean ``-0.8 s (2 p - 1)`` once it is known to be down with probability p: the
    moments of a normal variable whose sign is known with that probability.
    """
    count, known = len(seen.pending), seen.p_hotter[np.isfinite(seen.p_hotter)]
    for place in range(count):
        weights = np.zeros(len(mean))
        weights[place] = 1.0
        yield KnownValue(weights, float(mean[place]), model.noise**2)
    for number, p in enumerate(known):
        weights = np.zeros(len(mean))
        weights[count + len(known) + number], weights[count + number] = 1.0, -1.0
        spread = math.sqrt(max(float(weights @ covariance @ weights), 1e-12))
        lean = SIGN_MEAN * (2 * p - 1)
        if abs(lean) < 1e-3 or spread < 1e-5:
            continue
        noise = (1 - lean**2) / lean**2 * spread**2
        yield KnownValue(weights, float(weights @ mean) - lean * spread * (1 + noise / spread**2), noise)


def _near(places: Numbers, others: Numbers) -> NDArray[np.bool_]:
    """Whether each place (m, k) is nearer than `MIN_DISTANCE` to one of the others (q, k) on every axis."""
    return np.asarray((np.abs(places[:, None] - others[None]).max(-1) < MIN_DISTANCE).any(1))


def expected_improvement(best: float, mean: Numbers, spread: Numbers) -> Numbers:
    """Return ``E max(0, best - f)`` of a normal f."""
    z = (best - mean) / spread
    return np.asarray(spread * (z * norm.cdf(z) + norm.pdf(z)))


def fitted(places: Numbers, values: Numbers, trainings: NDArray[np.int64]) -> GaussianProcess:
    """Fit the surface of a map to the cells of trials."""
    count = len(values)
    return fit(places, values[:, None], trainings, np.zeros(count), np.ones(count), MIN_SPREAD)


def is_trusted(places: Numbers, values: Numbers, trainings: NDArray[np.int64]) -> bool:
    """Return whether the surface ranks left-out settings better than chance, in five-fold cross-validation."""
    groups = np.unique(trainings)
    folds = groups % 5
    predicted = np.full(len(values), np.nan)
    for fold in np.unique(folds):
        out = np.isin(trainings, groups[folds == fold])
        if out.all():
            return False
        model = fitted(places[~out], values[~out], trainings[~out])
        predicted[out] = model.predict(places[out])[0]
    if np.ptp(values) == 0 or np.ptp(predicted) == 0:
        return False
    return float(spearmanr(predicted, values).statistic) >= MIN_RANK_CORRELATION
