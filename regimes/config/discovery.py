"""How hard a network is pressed to become smaller while it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from regimes.config.recipe import Count, NonNegative, Section, ShareOrZero

Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Within = Annotated[float, Strict(), Field(gt=0, lt=1)]


class Pressure(Section):
    """Three numbers say what is wanted, the rest how it is sought.

    Attributes:
        nu: mean loss (nats) that one would pay for the whole network's complexity; 0 removes nothing.
        alpha: layers against units: 0 takes units only (a block goes with its last one), 1 layers (residual blocks)
            only. The pressure on units is
            scaled by ``2 (1 - alpha)``, that on blocks by ``2 alpha``.
        kappa: compute against parameters: 1 counts MACs only, 0 parameters only.
        start: probability at which gates begin.
        warm: share of the epochs before there is any pressure: gates stand at ``start``, nothing dies untrained.
        ramp: share of the epochs over which the pressure then grows, linearly, to its full size.
        settle: share of the epochs after which every gate above one half stays for good and the others leave; the
            rest of the training is that of a plain network.
        fall: share of the epochs in which an average gate that is worth nothing falls from ``start`` to 0 under full
            pressure: sets the step of the gates.
        drawn: share of each batch whose gates are drawn; the rest is trained under the gates that would stay now, so
            that the network learns what it will be, and less from noise.
        estimator: of what a unit's gate is worth, a name in `ESTIMATORS`.
        blocks: of what a block is worth: "exact" (two forward passes), or as an estimator of units.
        every: steps from one exact block difference to the next, block after block.
    """

    nu: NonNegative = 0.3
    alpha: Share = 0.5
    kappa: Share = 0.5
    start: Within = 0.9
    warm: ShareOrZero = 0.05
    ramp: ShareOrZero = 0.05
    settle: Within = 0.3
    fall: Within = 0.1
    drawn: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.25
    estimator: str = "curved"
    blocks: Literal["exact", "straight-through", "trapezoid", "curved"] = "exact"
    every: Count = 8

    @property
    def too_short(self) -> str:
        """What is wrong where the structure would be fixed before the full pressure; "" where nothing is."""
        if self.warm + self.ramp < self.settle:
            return ""
        return f"{self.settle:g} is not above warm + ramp, {self.warm + self.ramp:g}"
