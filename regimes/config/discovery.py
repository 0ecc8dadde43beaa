"""Options of discovery: the penalty on a network's complexity while it trains, and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from regimes.config.recipe import Count, NonNegative, Section, ShareOrZero

Share = Annotated[float, Strict(), Field(ge=0, le=1)]
OpenShare = Annotated[float, Strict(), Field(gt=0, lt=1)]


class Pressure(Section):
    """Penalty on a network's complexity while it trains.

    ``nu``, ``alpha`` and ``kappa`` set the objective, the other options the optimisation.

    Attributes:
        nu: price of the whole network's complexity in mean loss (nats); 0 removes nothing.
        alpha: layers against units: 0 removes units only (a block is removed with its last unit), 1 layers (residual
            blocks) only. The pressure on units is scaled by ``2 (1 - alpha)``, that on blocks by ``2 alpha``.
        kappa: compute against parameters: 1 counts MACs only, 0 parameters only.
        start: initial probability of the gates.
        warm: fraction of the epochs without pressure: gates stay at ``start`` and nothing is removed.
        ramp: fraction of the epochs over which the pressure then grows linearly to its full size.
        settle: fraction of the epochs after which every gate above one half is kept for good and the others are
            removed; the rest of the training is that of a plain network.
        fall: fraction of the epochs in which an average gate without benefit falls from ``start`` to 0 under full
            pressure; sets the step size of the gates.
        drawn: fraction of each batch whose gates are sampled; the rest is trained with the gates rounded to 0 or 1,
            so that the network learns its final form with less noise.
        estimator: estimator of the benefit of a unit's gate, a name in `ESTIMATORS`.
        blocks: estimator of the benefit of a block: "exact" (two forward passes), or one of the units' estimators.
        every: steps between two exact block differences; blocks take turns.
    """

    nu: NonNegative = 0.3
    alpha: Share = 0.5
    kappa: Share = 0.5
    start: OpenShare = 0.9
    warm: ShareOrZero = 0.05
    ramp: ShareOrZero = 0.05
    settle: OpenShare = 0.3
    fall: OpenShare = 0.1
    drawn: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.25
    estimator: str = "curved"
    blocks: Literal["exact", "straight-through", "trapezoid", "curved"] = "exact"
    every: Count = 8

    @property
    def settle_error(self) -> str:
        """Error message if the structure would be fixed before the full pressure is reached, else ""."""
        if self.warm + self.ramp < self.settle:
            return ""
        return f"must be above warm + ramp = {self.warm + self.ramp:g}, got {self.settle:g}"
