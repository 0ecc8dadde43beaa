"""What a gate is worth: estimates of ``h = E[L(xi = 1) - L(xi = 0)]``, the slope of the expected loss along its
probability.

An estimator is a function of the loss's derivatives by the gates of each input, and of the gates themselves. A new one
is a function here and a line in `ESTIMATORS`.
"""

from __future__ import annotations

from torch import Tensor


def straight_through(slopes: Tensor, gates: Tensor) -> Tensor:
    """The mean derivative, wherever the gates happen to stand: ``theta L'(1) + (1 - theta) L'(0)``.

    Least variance. Its bias is what the loss bends between 0 and 1: once the weights have converged, ``L'(1)`` is near
    0 for a unit that is needed.

    Args:
        slopes: (n, gates) derivative of each input's loss by its own gate.
        gates: (n, gates) 0 or 1.
    """
    return slopes.mean(0)


def trapezoid(slopes: Tensor, gates: Tensor) -> Tensor:
    """``(L'(1) + L'(0)) / 2``, from the inputs whose gate was on and those whose gate was off.

    Exact where the loss is quadratic in the gate. Its variance grows when one side is seldom drawn; a gate that stood
    on one side for all inputs is estimated by that side alone.
    """
    on, off = gates, 1 - gates
    there, gone = on.sum(0), off.sum(0)
    above, below = (slopes * on).sum(0) / there.clamp(min=1), (slopes * off).sum(0) / gone.clamp(min=1)
    sides = (there > 0).to(slopes.dtype) + (gone > 0).to(slopes.dtype)
    return (above + below) / sides.clamp(min=1)


def curved(slopes: Tensor, gates: Tensor) -> Tensor:
    """The straight-through slope, set right by half of the curvature: ``L'(1) - c/2`` where a gate is on,
    ``L'(0) + c/2`` where it is off, with ``c = E[L'^2]``, the empirical Fisher information of the gate.

    To second order as the trapezoid, and each input tells, whichever side it was drawn on; as good as ``c`` is near
    the second derivative.
    """
    return slopes.mean(0) + (0.5 - gates.mean(0)) * slopes.square().mean(0)
