"""Checks of model options and input shapes."""

from __future__ import annotations

from regimes.errors import UserError


def require_images(name: str, input_shape: tuple[int, ...], least: int = 1, signals: bool = False) -> None:
    """Raise `UserError` unless the inputs are images (c, h, w) of at least ``least`` pixels per side.

    Args:
        name: name of the model.
        input_shape: shape of one input.
        least: smallest number of pixels per side.
        signals: whether signals (c, length) are allowed too.
    """
    if len(input_shape) != 3 and not (signals and len(input_shape) == 2):
        allowed = "images (c, h, w)" + (" or signals (c, length)" if signals else "")
        raise UserError(f"model '{name}' needs {allowed}, the data has inputs of shape {input_shape}; try 'mlp'")
    if min(input_shape[1:]) < least:
        raise UserError(
            f"model '{name}' needs images of {least}x{least} pixels or more, the data has inputs of shape {input_shape}"
        )


def blocks_per_stage(kind: str, depth: int) -> int:
    """Return the number of blocks in each of the three stages of a residual network of depth 6n+2.

    Raises:
        UserError: the depth is not 6n+2, or below 8.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"model.depth = {depth}: {kind} has depth 6n+2; allowed: 8, 14, 20, 26, 32, 44, 56, 110")
    return (depth - 2) // 6
