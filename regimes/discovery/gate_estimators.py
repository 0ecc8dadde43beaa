"""Estimators of a gate's effect on the loss, ``h = E[L(xi = 1) - L(xi = 0)]``: the derivative of the expected loss with
respect to the gate's probability.

An estimator is a function of the derivatives of each input's loss with respect to its gates, and of the gates. To add
one, add a function here and a line to `ESTIMATORS`.
"""

from __future__ import annotations

from torch import Tensor


def straight_through(slopes: Tensor, gates: Tensor) -> Tensor:
    """Return the mean derivative over all inputs: ``theta L'(1) + (1 - theta) L'(0)``.

    It has the smallest variance. Its bias is due to the curvature of the loss between 0 and 1: after the weights have
    converged, ``L'(1)`` is near 0 even for a unit that is needed.

    Args:
        slopes: (n, gates) derivative of each input's loss with respect to its own gates.
        gates: (n, gates) 0 or 1.
    """
    return slopes.mean(0)


def trapezoid(slopes: Tensor, gates: Tensor) -> Tensor:
    """Return ``(L'(1) + L'(0)) / 2``, from the inputs whose gate was on and those whose gate was off.

    Exact if the loss is quadratic in the gate. Its variance grows if one side is rarely sampled; a gate that had the
    same value for all inputs is estimated from that side alone.

    Args:
        slopes: (n, gates) derivative of each input's loss with respect to its own gates.
        gates: (n, gates) 0 or 1.
    """
    on, off = gates, 1 - gates
    count_on, count_off = on.sum(0), off.sum(0)
    above, below = (slopes * on).sum(0) / count_on.clamp(min=1), (slopes * off).sum(0) / count_off.clamp(min=1)
    sides = (count_on > 0).to(slopes.dtype) + (count_off > 0).to(slopes.dtype)
    return (above + below) / sides.clamp(min=1)


def curved(slopes: Tensor, gates: Tensor) -> Tensor:
    """Return the straight-through slope corrected by half the curvature.

    ``L'(1) - c/2`` where a gate is on and ``L'(0) + c/2`` where it is off, with ``c = E[L'^2]``, the empirical Fisher
    information of the gate. Equal to the trapezoid to second order, but every input contributes, whichever value its
    gate had; as accurate as ``c`` approximates the second derivative.

    Args:
        slopes: (n, gates) derivative of each input's loss with respect to its own gates.
        gates: (n, gates) 0 or 1.
    """
    return slopes.mean(0) + (0.5 - gates.mean(0)) * slopes.square().mean(0)
