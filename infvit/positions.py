"""Initial position embeddings, and their interpolation to other resolutions.

Linear-InfSA gives every token the same vector, so tokens must be distinguishable by position from the first layer on.
In small prototypes it hardly learned with the usual weak positions (normal, std 0.02) but did with unit-amplitude
sin-cos. The initial positions are therefore part of the recipe, the same for every model.
"""

import math
from collections.abc import Callable

import torch
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import Tensor

from infvit.errors import UsageError, expect

PositionStart = Callable[[tuple[int, int], int], Tensor]
"""(grid height, grid width), D → the initial embedding of each patch, (h · w, D)."""


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """2-D sine-cosine positions with unit amplitude: (h, w), D → (h · w, D).

    Raises:
        UsageError: if `dim` is not a multiple of 4 (sine and cosine for each of two axes).
    """
    if dim % 4:
        raise UsageError(f"dim={dim} is not a multiple of 4, which 2-D sin-cos positions need: choose {dim + -dim % 4}")
    return build_sincos2d_pos_embed(list(grid), dim=dim, interleave_sin_cos=False)


def normal(grid: tuple[int, int], dim: int, std: float = 0.02) -> Tensor:
    """Normal positions with the given std, 0 or more: (h, w), D → (h · w, D)."""
    expect(0 <= std < math.inf, f"std={std}", "0 or more")
    return torch.randn(grid[0] * grid[1], dim) * std


POSITIONS: dict[str, PositionStart] = {"sincos": sincos, "normal": normal}


def resample(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], prefix: int) -> Tensor:
    """Interpolates (1, prefix + h · w, D) bicubically to another grid; prefix tokens are unchanged."""
    if grid == new_grid:
        return positions
    return resample_abs_pos_embed(positions, new_size=list(new_grid), old_size=list(grid), num_prefix_tokens=prefix)
