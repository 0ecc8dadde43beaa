"""What models say when their options or the data do not suit them."""

from __future__ import annotations

from regimes.errors import UserError


def images_only(name: str, input_shape: tuple[int, ...], least: int = 1) -> None:
    """Raise UserError unless the inputs are images (c, h, w) of at least ``least`` pixels a side."""
    if len(input_shape) != 3:
        raise UserError(f"model '{name}' needs images (c, h, w), the data has inputs of shape {input_shape}; try 'mlp'")
    if min(input_shape[1:]) < least:
        raise UserError(f"model '{name}' needs images of {least}x{least} pixels or more, the data has {input_shape}")


def depth_of_stages(kind: str, depth: int) -> int:
    """Blocks in each of three stages of a residual network of depth 6n+2.

    Raises:
        UserError: there is no such depth.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"model.depth = {depth}: {kind} has depth 6n+2; allowed: 8, 14, 20, 26, 32, 44, 56, 110")
    return (depth - 2) // 6
